#include "glassformer/graph/extension.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <sstream>

#include "glassformer/base/errors.h"
#include "glassformer/graph/graph_editor.h"

namespace glassformer {
namespace {

std::optional<int64_t> number_in(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// "batch pos head=4 d_head=16"
std::vector<Axis> parse_axes(const std::string& node, const std::string& text) {
  std::vector<Axis> axes;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    Axis axis{word.substr(0, equals), 0};
    const bool decided_by_input = axes.size() < 2;
    if (!decided_by_input) {
      const std::optional<int64_t> size = number_in(equals == std::string::npos ? word : word.substr(equals + 1));
      if (!size || *size < 1)
        throw InputError(str("node '", node, "': axis '", word, "' has no size; write it as '", axis.word, "=12'"));
      axis.size = *size;
    } else if (axis.word != (axes.empty() ? "batch" : "pos") || equals != std::string::npos) {
      break;
    }
    for (const Axis& other : axes)
      if (other.word == axis.word) throw InputError(str("node '", node, "' has two axes '", axis.word, "'"));
    axes.push_back(std::move(axis));
  }
  const auto keys =
      std::find_if(axes.begin(), axes.end(), [](const Axis& axis) { return axis.word.ends_with("_pos"); });
  if (keys != axes.end())
    throw InputError(str("node '", node, "': axis '", keys->word, "' counts positions; only 'pos' can"));
  if (axes.size() < 2)
    throw InputError(
        str("node '", node, "' has the axes '", text, "'; expected 'batch pos' and further ones with sizes"));
  return axes;
}

// Users' code runs as in a program of its own: the engine goes below autograd where no graph is wanted, which their
// code must not notice.
class UserCode {
 public:
  UserCode() : key_set_(usual_keys()) {
    if (!wants_graph_) no_grad_.emplace(false);
  }

 private:
  c10::impl::LocalDispatchKeySet usual_keys() {
    c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
    wants_graph_ = at::GradMode::is_enabled() && !keys.excluded_.has(c10::DispatchKey::AutogradCPU);
    if (keys.included_.has(c10::DispatchKey::ADInplaceOrView))  // Not so in the user's inference mode.
      keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
    return keys;
  }

  bool wants_graph_ = false;
  c10::impl::ForceDispatchKeyGuard key_set_;
  std::optional<at::AutoGradMode> no_grad_;
};

std::string shape_with_words(const std::vector<int64_t>& shape, const std::vector<Axis>& axes) {
  std::string words;
  for (const Axis& axis : axes) words += (words.empty() ? "" : " ") + axis.word;
  return str(shape_text(shape), " (", words, ")");
}

// What users' code gave, as the engine keeps it: of the expected shape and dtype, in memory that nobody else holds, and
// with a graph only where one is wanted.
at::Tensor taken(const at::Tensor& output, const std::vector<int64_t>& shape, const std::vector<Axis>& axes,
                 const std::string& node, const Weights& weights) {
  if (!output.defined() || output.layout() != at::kStrided)
    throw InputError(str(node, ": its step must return a dense tensor"));
  if (output.sizes() != at::IntArrayRef(shape))
    throw ShapeError(
        str(node, ": its step returned ", shape_text(output.sizes()), "; expected ", shape_with_words(shape, axes)));
  const at::Tensor own = output.to(at::TensorOptions(weights.device()).dtype(weights.dtype())).contiguous();
  return own.is_same(output) ? own.clone() : own;
}

using UserRun = std::function<at::Tensor(const StepCall&)>;

steps::Run user_step(UserRun run, std::string node, std::vector<Axis> axes) {
  return [run = std::move(run), node = std::move(node), axes = std::move(axes)](const StepCall& call) {
    const UserCode user_code;
    std::vector<at::Tensor> inputs;
    for (const at::Tensor& input : call.inputs) inputs.push_back(input.clone());
    std::vector<int64_t> shape = {inputs.front().size(0), call.rows.count()};
    for (size_t axis = 2; axis < axes.size(); ++axis) shape.push_back(axes[axis].size);
    return taken(run({inputs, call.weights, call.rows, call.n_keys, call.length_class}), shape, axes, node,
                 call.weights);
  };
}

// "blocks.1.hook_x" or "blocks.1.x" -> "blocks.1.x", or with `hook` "blocks.1.hook_x".
std::string spelled(const std::string& name, bool hook) {
  const size_t part = name.rfind('.') == std::string::npos ? 0 : name.rfind('.') + 1;
  const size_t begin = name.compare(part, 5, "hook_") == 0 ? part + 5 : part;
  return name.substr(0, part) + (hook ? "hook_" : "") + name.substr(begin);
}

class Extender {
 public:
  Extender(GraphEditor& editor, const Weights& weights) : editor_(editor), weights_(weights) {}

  // Behind its last input and those added there from `made_since` on, or at the end.
  void add(const NodeSpec& spec, std::optional<NodeId> made_since, const std::vector<NodeSpec>& all) {
    check_name(spec.name);
    if (!spec.run) throw InputError(str("node '", spec.name, "' has no function that computes it"));
    if (spec.inputs.empty())
      throw InputError(str("node '", spec.name, "' has no inputs; every node is made from others"));
    std::vector<StepInput> inputs;
    NodeId last = -1;
    for (const InputSpec& input : spec.inputs) {
      const NodeId id = find(input.node, spec.name, all);
      inputs.push_back({id, input.reach});
      if (last < 0 || editor_.is_before(last, id)) last = id;
    }
    std::vector<WeightId> used;
    for (const std::string& name : spec.weights) used.push_back(weights_.find(name));
    const std::vector<Axis> axes = parse_axes(spec.name, spec.axes);
    const NodeId after = made_since ? editor_.last_of_run(last, *made_since) : GraphEditor::kAtEnd;
    const NodeId id =
        add_node(spec.name, axes,
                 {spec.text, std::move(inputs), user_step(spec.run, spec.name, axes), std::move(used), false}, after);
    if (spec.name == "logits") editor_.set_logits(id);
  }

  void splice(const SpliceSpec& spec) {
    if (!spec.encode || !spec.decode) throw InputError(str("splice '", spec.name, "' needs encode and decode"));
    const NodeId below = computed(spec.node), reads = spec.reads.empty() ? below : computed(spec.reads);
    const std::string name = editor_.node(below).name, prefix = spec.name + ".hook_";
    for (const char* part : {"in", "acts", "recon", "error"}) check_name(prefix + part);
    if (reads != below && !editor_.is_before(reads, below))
      throw InputError(str("splice '", spec.name, "' reads ", editor_.node(reads).name, ", which comes after ", name));
    const std::vector<Axis> axes = editor_.node(below).axes, features = probe(spec, editor_.node(reads), axes);
    editor_.rename(below, prefix + "in");
    const auto only_input = [](const auto& function) {
      return [function](const StepCall& call) { return function(call.inputs[0]); };
    };
    const steps::Run encode = user_step(only_input(spec.encode), prefix + "acts", features);
    const steps::Run decode = user_step(only_input(spec.decode), prefix + "recon", axes);
    const NodeId acts = add_node(prefix + "acts", features, {"encode", {{reads}}, encode, {}, false}, below);
    const NodeId recon = add_node(prefix + "recon", axes, {"decode", {{acts}}, decode, {}, false}, acts);
    std::vector<StepInput> sources = {{below}};
    if (reads != below) sources.push_back({reads});
    const NodeId error = add_node(prefix + "error", axes,
                                  {"minus_decoded_features", sources, lacking(encode, decode), {}, false}, recon);
    const NodeId above = add_node(name, axes, {"sum", {{recon}, {error}}, steps::sum()}, error);
    editor_.shortcut(above, {acts, recon, error}, {"identity", {{below}}, steps::identity()});
    editor_.node(above).stands_for = below;
    editor_.put_between(below, above, {acts, recon, error});
  }

 private:
  NodeId add_node(const std::string& name, const std::vector<Axis>& axes, GraphEditor::StepSpec step, NodeId after) {
    int64_t columns = 1;
    for (const Axis& axis : axes) columns *= std::max<int64_t>(axis.size, 1);
    editor_.add_columns(columns);
    return editor_.add(name, axes, std::move(step), after);
  }

  // What the reconstruction lacks. It is made from the features as they are computed, not as they are set.
  static steps::Run lacking(const steps::Run& encode, const steps::Run& decode) {
    return [encode, decode](const StepCall& call) {
      const auto run = [&call](const steps::Run& step, const at::Tensor& input) {
        return step({{&input, 1}, call.weights, call.rows, call.n_keys, call.length_class});
      };
      return call.inputs[0] - run(decode, run(encode, call.inputs.back()));
    };
  }

  // No name may come to mean another node than before.
  void check_name(const std::string& name) const {
    const bool odd = name.empty() || name.find_first_of(" \t\n") != std::string::npos;
    if (odd) throw InputError(str("'", name, "' is no name for a node: it must have letters and no spaces"));
    const Graph& graph = editor_.graph();
    for (const std::string& spelling : {name, spelled(name, false), Graph::short_form(spelled(name, true))})
      if (!spelling.empty() && graph.has(spelling))
        throw InputError(str("a node can't be called '", name, "': '", spelling, "' is ",
                             graph.node(graph.find(spelling)).name, " already"));
  }

  NodeId find(const std::string& input, const std::string& name, const std::vector<NodeSpec>& all) const {
    if (!editor_.graph().has(input))
      for (const NodeSpec& other : all)
        if (other.name == input)
          throw InputError(str("node '", name, "' reads '", input, "', which ",
                               input == name ? "is itself" : "comes after it: give nodes in computing order"));
    return editor_.graph().find(input);
  }

  NodeId computed(const std::string& name) const {
    const NodeId id = editor_.graph().find(name);
    const Node& node = editor_.node(id);
    const bool narrow = weights_.dtype() != at::kFloat && weights_.dtype() != at::kDouble;
    if (node.is_input || node.choices > 0 || node.has_keys() || (narrow && node.is_wide) ||
        (node.is_single && weights_.dtype() != at::kFloat))
      throw InputError(str("nothing can be spliced onto ", node.name, " (", shape_words(node),
                           "); expected a computed node 'batch pos …' in the model's dtype"));
    return id;
  }

  // The features' axes, by calling both functions on zeros at one position.
  std::vector<Axis> probe(const SpliceSpec& spec, const Node& read, const std::vector<Axis>& axes) const {
    const auto sizes = [](const std::vector<Axis>& of) {
      std::vector<int64_t> shape;
      for (const Axis& axis : of) shape.push_back(std::max<int64_t>(axis.size, 1));
      return shape;
    };
    const UserCode user_code;
    const at::TensorOptions options = at::TensorOptions(weights_.device()).dtype(weights_.dtype());
    const std::string name = spec.name + ".hook_acts";
    at::Tensor features = spec.encode(at::zeros(sizes(read.axes), options));
    if (!features.defined() || features.dim() < 2)
      throw ShapeError(str(name, ": encode returned ", features.defined() ? shape_text(features.sizes()) : "nothing",
                           " for ", shape_with_words(sizes(read.axes), read.axes), "; expected 'batch pos …'"));
    std::vector<Axis> found;
    if (!spec.axes.empty()) {
      found = parse_axes(name, spec.axes);
    } else {
      found = {axes[0], axes[1]};
      for (int64_t axis = 2; axis < features.dim(); ++axis) {
        const bool last = axis + 1 == features.dim();
        const auto place = static_cast<size_t>(axis);
        const bool alike = !last && place < read.axes.size() && read.axes[place].size == features.size(axis);
        found.push_back({last    ? "feature"
                         : alike ? read.axes[place].word
                                 : str("feature_", axis - 1),
                         features.size(axis)});
      }
    }
    features = taken(features, sizes(found), found, name, weights_);
    taken(spec.decode(features), sizes(axes), axes, spec.name + ".hook_recon", weights_);
    return found;
  }

  GraphEditor& editor_;
  const Weights& weights_;
};

// How many of "blocks.0.…", "blocks.1.…" there are.
int64_t count_layers(const Graph& graph) {
  int64_t layers = 0;
  for (const Node& node : graph.nodes())
    if (const std::optional<int64_t> layer = layer_of(node)) layers = std::max(layers, *layer + 1);
  return layers;
}

}  // namespace

std::shared_ptr<const Graph> extend_graph(const Graph& base, const Extension& extension, const Weights& weights) {
  GraphEditor editor(base, weights);
  Extender extender(editor, weights);
  for (const SpliceSpec& splice : extension.splices) extender.splice(splice);
  const auto made_since = static_cast<NodeId>(editor.graph().nodes().size());
  for (const NodeSpec& node : extension.nodes) extender.add(node, made_since, extension.nodes);
  return editor.finish();
}

std::shared_ptr<const Graph> define_graph(const std::vector<NodeSpec>& nodes, const Weights& weights, int64_t n_ctx) {
  if (nodes.empty()) throw InputError("a model needs nodes");
  GraphEditor editor(weights);
  Extender extender(editor, weights);
  for (const NodeSpec& node : nodes) extender.add(node, std::nullopt, nodes);
  editor.set_sizes(n_ctx, count_layers(editor.graph()));
  return editor.finish();
}

}  // namespace glassformer
