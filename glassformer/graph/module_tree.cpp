#include "glassformer/graph/module_tree.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

constexpr std::string_view kLayer = "{}";

std::string at_layer(std::string pattern, int64_t layer) {
  const size_t place = pattern.find(kLayer);
  return place == std::string::npos ? pattern : pattern.replace(place, kLayer.size(), std::to_string(layer));
}

// As Python prints a float: 1e-05, 0.0001, 1.0.
std::string number_text(double value) {
  const double size = std::abs(value);
  const bool fixed = value == 0 || (size >= 1e-4 && size < 1e16);
  char buffer[400];
  const auto [end, error] = std::to_chars(std::begin(buffer), std::end(buffer), value,
                                          fixed ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end);
  return fixed && text.find('.') == std::string::npos ? text + ".0" : text;
}

const char* truth(bool value) { return value ? "True" : "False"; }

// Which nodes lie on which ways, where nothing is edited but whole inputs of modules.
class Ways {
 public:
  explicit Ways(const Graph& graph) : graph_(graph), next_(graph.nodes().size()) {
    for (const Node& node : graph.nodes()) {
      for (const StepInput& input : node.open.inputs) add(input.node, node.id);
      // A shortcut is a way of its own where it goes past what its input does not reach: q is made of the shared norm,
      // and by its open step of each head's own input.
      for (const StepInput& input : node.fast.inputs)
        if (std::none_of(node.skipped.begin(), node.skipped.end(),
                         [&](NodeId skipped) { return graph.reaches(input.node, skipped); }))
          add(input.node, node.id);
    }
  }

  /// Whether all ways from `inputs` to the logits go through `outputs`.
  bool all_go_through(const std::vector<NodeId>& inputs, const std::vector<NodeId>& outputs) const {
    std::vector<bool> seen(next_.size(), false);
    for (NodeId output : outputs) seen[static_cast<size_t>(output)] = true;
    std::vector<NodeId> left = inputs;
    while (!left.empty()) {
      const NodeId node = left.back();
      left.pop_back();
      if (seen[static_cast<size_t>(node)]) continue;
      if (node == graph_.logits()) return false;
      seen[static_cast<size_t>(node)] = true;
      left.insert(left.end(), next_[static_cast<size_t>(node)].begin(), next_[static_cast<size_t>(node)].end());
    }
    return true;
  }

 private:
  void add(NodeId from, NodeId to) { next_[static_cast<size_t>(from)].push_back(to); }

  const Graph& graph_;
  std::vector<std::vector<NodeId>> next_;
};

struct Ends {
  std::vector<std::string> input, output, more_outputs = {};
};

class ModuleTree {
 public:
  explicit ModuleTree(const Model& model)
      : model_(model),
        config_(model.config()),
        graph_(model.graph()),
        architecture_(architecture_of(model)),
        ways_(graph_) {
    const std::vector<std::string>& types = architecture_.model_types;
    const auto place = std::find(types.begin(), types.end(), config_.architecture) - types.begin();
    class_prefix_ = architecture_.class_prefixes.at(static_cast<size_t>(place));
  }

  std::vector<ModuleInfo> modules() const {
    std::vector<ModuleInfo> made;
    const auto in_block = [](const ModuleRule& rule) { return rule.path.find(kLayer) != std::string::npos; };
    const auto& rules = architecture_.modules;
    for (auto rule = rules.begin(); rule != rules.end();) {
      if (!in_block(*rule)) {
        made.push_back(module(*rule++, -1));
        continue;
      }
      const auto end = std::find_if_not(rule, rules.end(), in_block);
      for (int64_t layer = 0; layer < config_.n_layers; ++layer)
        for (auto each = rule; each != end; ++each) made.push_back(module(*each, layer));
      rule = end;
    }
    return made;
  }

 private:
  static const Architecture& architecture_of(const Model& model) {
    const ModelConfig& config = model.config();
    for (const Architecture& architecture : architectures())
      if (std::count(architecture.model_types.begin(), architecture.model_types.end(), config.architecture) > 0 &&
          !architecture.modules.empty() && config.d_model > 0)
        return architecture;
    throw UnsupportedError(
        str("model '", model.name(), "' has no modules: it is of no architecture of transformers; use its nodes"));
  }

  ModuleInfo module(const ModuleRule& rule, int64_t layer) const {
    ModuleInfo made;
    made.path = at_layer(rule.path, layer);
    made.class_name =
        rule.part == ModulePart::kActivation ? activation_class(config_.reference.activation) : rule.class_name;
    if (made.class_name.starts_with('*')) made.class_name = class_prefix_ + made.class_name.substr(1);
    made.layer = layer;
    made.part = name_of(rule.part);
    made.standard = standard(rule.part, layer);
    made.parameters = parameters(rule.path, layer);
    made.description = description(rule, made);
    auto [input, output, more_outputs] = ends(rule.part, layer);
    if (input.empty()) return made;
    const std::vector<NodeId> from = ids(input), to = ids(output);
    made.input_is_private = ways_.all_go_through(from, to);
    if (from.size() == 1 && can_begin_at(from[0], to)) made.call_begin = input[0];
    made.input = std::move(input);
    made.output = std::move(output);
    made.more_outputs = std::move(more_outputs);
    return made;
  }

  std::vector<NodeId> ids(const std::vector<std::string>& names) const {
    std::vector<NodeId> found;
    for (const std::string& name : names) found.push_back(graph_.find(name));
    return found;
  }

  // As traces begin at a node: at an activation with positions that all of the output is made of.
  bool can_begin_at(NodeId input, const std::vector<NodeId>& outputs) const {
    const Node& node = graph_.node(input);
    if (node.is_input || node.choices > 0 || node.axes.size() < 2 || node.axes[1].word != "pos") return false;
    return std::all_of(outputs.begin(), outputs.end(),
                       [&](NodeId output) { return output == input || graph_.reaches(input, output); });
  }

  // Nodes at the border of a part, for each way in which the universal block can be laid out.

  std::string normed(const std::string& norm, const std::string& input) const {
    return graph_.has(norm + ".hook_out") ? norm + ".hook_out" : input;
  }
  // What attention ("ln1") or the MLP ("ln2") takes: behind its norm where that stands before it.
  std::string taken(const std::string& block, const std::string& ln, const char* residual) const {
    return config_.norms_after ? block + residual : normed(block + ln, block + residual);
  }
  // What it gives: before the norms behind it.
  std::string given(const std::string& block, const std::string& ln, const char* added) const {
    const std::vector<std::string> behind = config_.norms_behind(ln);
    return block + (behind.empty() ? added : behind.front() + ".hook_in");
  }
  Ends norm_ends(const std::string& block, const std::string& ln, const char* residual) const {
    if (!config_.norms_after) return {{block + residual}, {normed(block + ln, block + residual)}};
    return {{block + (config_.second_norms ? ln + "_post.hook_out" : ln + ".hook_in")}, {block + ln + ".hook_out"}};
  }

  Ends ends(ModulePart part, int64_t layer) const {
    const std::string last = str("blocks.", config_.n_layers - 1, ".hook_resid_post");
    switch (part) {
      case ModulePart::kModel:
        return {{"hook_tokens"}, {"logits"}};
      case ModulePart::kDecoder:
        return {{"hook_tokens"}, {normed("ln_final", last)}};
      case ModulePart::kEmbed:
        return {{"hook_tokens"}, {config_.embed_norm ? "embed.ln.hook_in" : "hook_embed"}};
      case ModulePart::kPosEmbed:
        return {{"positions"}, {"hook_pos_embed"}};
      case ModulePart::kEmbedDropout:
        return {{"blocks.0.hook_resid_pre"}, {"blocks.0.hook_resid_pre"}};
      case ModulePart::kRotary:
        return {{"hook_embed"}, {"rotary.hook_cos"}, {"rotary.hook_sin"}};
      case ModulePart::kBlocks:
        return {};
      case ModulePart::kFinalNorm:
        return {{last}, {normed("ln_final", last)}};
      case ModulePart::kUnembed:
        return {{"unembed.hook_in"}, {"unembed.hook_out"}};
      default:
        return block_ends(part, str("blocks.", layer, "."));
    }
  }

  Ends block_ends(ModulePart part, const std::string& block) const {
    const std::string attn = block + "attn.", mlp = block + "mlp.";
    const std::string attn_in = taken(block, "ln1", "hook_resid_pre"), mlp_in = taken(block, "ln2", "hook_mlp_in");
    const std::string attn_out = given(block, "ln1", "hook_attn_out"), mlp_out = given(block, "ln2", "hook_mlp_out");
    switch (part) {
      case ModulePart::kBlock:
        return {{block + "hook_resid_pre"}, {block + "hook_resid_post"}};
      case ModulePart::kAttnNorm:
        return norm_ends(block, "ln1", "hook_resid_pre");
      case ModulePart::kAttention:
        return {{attn_in}, {attn_out}, {attn + "hook_pattern"}};
      case ModulePart::kQ:
        return {{attn_in}, {attn + "hook_q"}};
      case ModulePart::kK:
        return {{attn_in}, {attn + "hook_k"}};
      case ModulePart::kV:
        return {{attn_in}, {attn + "hook_v"}};
      case ModulePart::kQkv:
        return {{attn_in}, {attn + "hook_q", attn + "hook_k", attn + "hook_v"}};
      case ModulePart::kAttnDropout:
        return {{attn + "hook_pattern"}, {attn + "hook_pattern"}};
      case ModulePart::kO:
        return {{attn + "hook_z"}, {attn_out}};
      case ModulePart::kAttnOutDropout:
        return {{attn_out}, {attn_out}};
      case ModulePart::kMlpNorm:
        return norm_ends(block, "ln2", "hook_mlp_in");
      case ModulePart::kMlp:
        return {{mlp_in}, {mlp_out}};
      case ModulePart::kMlpGate:
        return {{mlp_in}, {mlp + "hook_pre"}};
      case ModulePart::kMlpIn:
        return {{mlp_in}, {mlp + (config_.gated_mlp ? "hook_pre_linear" : "hook_pre")}};
      case ModulePart::kActivation:
        return {{mlp + "hook_pre"},
                {mlp + (config_.mlp_norm    ? "hook_mid"
                        : config_.gated_mlp ? "hook_act"
                                            : "hook_post")}};
      case ModulePart::kMlpOut:
        return {{mlp + "hook_post"}, {mlp_out}};
      case ModulePart::kMlpDropout:
        return {{mlp_out}, {mlp_out}};
      default:
        return {};
    }
  }

  static std::string standard(ModulePart part, int64_t layer) {
    switch (part) {
      case ModulePart::kEmbed:
        return "embed_tokens";
      case ModulePart::kBlocks:
        return "layers";
      case ModulePart::kBlock:
        return str("layers.", layer);
      case ModulePart::kAttention:
        return str("layers.", layer, ".self_attn");
      case ModulePart::kMlp:
        return str("layers.", layer, ".mlp");
      case ModulePart::kFinalNorm:
        return "ln_final";
      case ModulePart::kUnembed:
        return "lm_head";
      default:
        return {};
    }
  }

  // What the model has of the tensor of the module's path, and the biases beside it: processed weights can have more of
  // these than the files.
  std::vector<ModuleParameter> parameters(const std::string& path, int64_t layer) const {
    const std::string& prefix = architecture_.prefix;
    const std::string stored = path.starts_with(prefix) ? path.substr(prefix.size()) : path;
    const auto& rules = architecture_.weights;
    const auto rule = std::find_if(rules.begin(), rules.end(),
                                   [&](const WeightRule& each) { return each.source == stored + ".weight"; });
    if (rule == rules.end()) return {};
    ModuleParameter weight{"weight", {}, rule->layout == Layout::kColumns}, bias{"bias", {}};
    constexpr std::string_view kWeight = "weight";
    for (const std::string& pattern : rule->weights) {
      const std::string name = at_layer(pattern, layer);
      const std::string beside = name.substr(0, name.size() - kWeight.size()) + "bias";
      if (model_.weights().has(name)) weight.weights.push_back(name);
      if (model_.weights().has(beside)) bias.weights.push_back(beside);
    }
    std::vector<ModuleParameter> found;
    for (ModuleParameter* parameter : {&weight, &bias})
      if (!parameter->weights.empty()) found.push_back(std::move(*parameter));
    return found;
  }

  // Rows by columns of the weight, outputs first.
  std::pair<int64_t, int64_t> size_of(const ModuleInfo& module) const {
    std::pair<int64_t, int64_t> size{0, 0};
    for (const std::string& name : module.parameters.at(0).weights) {
      const auto& shape = model_.weights().specs()[static_cast<size_t>(model_.weights().find(name))].shape;
      size.first += shape[0];
      size.second = shape.back();
    }
    return size;
  }

  std::string description(const ModuleRule& rule, const ModuleInfo& module) const {
    if (rule.class_name == "Dropout") return str("p=", number_text(dropout(rule.part)), ", inplace=False");
    const bool affine = !module.parameters.empty(), bias = module.parameters.size() > 1;
    std::string norm = str("(", config_.d_model, ",), eps=", number_text(config_.norm_eps));
    if (rule.class_name == "LayerNorm")
      return str(norm, ", elementwise_affine=", truth(affine), ", bias=", truth(bias));
    if (rule.class_name == "*RMSNorm") return norm;
    if (!affine) return {};
    const auto [rows, columns] = size_of(module);
    if (rule.class_name == "Linear")
      return str("in_features=", columns, ", out_features=", rows, ", bias=", truth(bias));
    if (rule.class_name == "Conv1D") return str("nf=", rows, ", nx=", columns);
    const std::optional<int64_t> padding = rule.part == ModulePart::kEmbed ? config_.reference.padding : std::nullopt;
    const std::string shown = padding ? str(", padding_idx=", *padding < 0 ? *padding + rows : *padding) : "";
    return str(rows, ", ", columns, shown);
  }

  double dropout(ModulePart part) const {
    const ReferenceDetails& details = config_.reference;
    if (part == ModulePart::kEmbedDropout) return details.embed_dropout;
    return part == ModulePart::kAttnDropout ? details.pattern_dropout : details.out_dropout;
  }

  const Model& model_;
  const ModelConfig& config_;
  const Graph& graph_;
  const Architecture& architecture_;
  Ways ways_;
  std::string class_prefix_;
};

}  // namespace

std::vector<ModuleInfo> module_tree(const Model& model) { return ModuleTree(model).modules(); }

}  // namespace glassformer
