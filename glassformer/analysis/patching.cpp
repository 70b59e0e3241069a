#include "glassformer/analysis/patching.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

struct Place {
  const Node* node = nullptr;
  Region region;
};

// "attn.hook_z" -> "z", as one gives it.
std::string short_name(std::string name) {
  for (const char* part : {"attn.", "mlp.", "hook_"})
    if (name.starts_with(part)) name.erase(0, std::strlen(part));
  return name;
}

[[noreturn]] void refuse_activation(const Graph& graph, const std::string& activation, const std::string& block) {
  std::vector<std::string> names;
  for (const Node& node : graph.nodes())
    if (node.name.starts_with(block)) names.push_back(short_name(node.name.substr(block.size())));
  const std::string near = did_you_mean(short_name(activation), names);
  throw NameError(str("no activation of the blocks is called '", activation, "'",
                      near.empty() ? "; expected one like resid_pre, attn_out, mlp_out or z" : near));
}

std::string node_name(const Graph& graph, const std::string& activation, int64_t layer) {
  const std::string block = str("blocks.", layer, ".");
  for (const char* part : {"", "attn.", "mlp."})
    if (std::string name = str(block, part, activation); graph.has(name)) return name;
  refuse_activation(graph, activation, block);
}

int head_axis(const Node& node) {
  for (size_t axis = 0; axis < node.axes.size(); ++axis)
    if (node.axes[axis].word == "head" || node.axes[axis].word == "kv_head") return static_cast<int>(axis);
  throw InputError(str(node.name, " has no head axis; its axes are: ", shape_words(node)));
}

std::vector<Place> places(const Graph& graph, const PatchOptions& options, const std::vector<int64_t>& layers,
                          int64_t length, std::vector<int64_t>& shape) {
  std::vector<Place> list;
  shape = {static_cast<int64_t>(layers.size())};
  for (int64_t layer : layers) {
    const Node& node = graph.node(graph.find(node_name(graph, options.activation, layer)));
    const int64_t n_heads = options.by_head ? node.axes[static_cast<size_t>(head_axis(node))].size : 1;
    const int64_t n_rows = options.by_position ? length : 1;
    for (int64_t row = 0; row < n_rows; ++row)
      for (int64_t head = 0; head < n_heads; ++head) {
        Place place{&node, {}};
        if (options.by_position) place.region.at_axis(static_cast<size_t>(node.row_axis), {row});
        if (options.by_head) place.region.at_axis(static_cast<size_t>(head_axis(node)), {head});
        list.push_back(std::move(place));
      }
    if (list.size() == static_cast<size_t>(n_rows * n_heads)) {
      if (options.by_position) shape.push_back(n_rows);
      if (options.by_head) shape.push_back(n_heads);
    }
  }
  return list;
}

at::Tensor value_of(Trace& clean, const Place& place) {
  at::Tensor value = clean.read(place.node->name);
  for (const Region::AxisIndices& axis : place.region.axes())
    value = value.narrow(static_cast<int64_t>(axis.axis), axis.indices.front(), 1);
  return value;
}

std::vector<int64_t> chosen_layers(const PatchOptions& options, int64_t n_layers) {
  std::vector<int64_t> layers = options.layers;
  if (layers.empty()) {
    layers.resize(static_cast<size_t>(n_layers));
    std::iota(layers.begin(), layers.end(), int64_t{0});
  }
  for (int64_t& layer : layers) {
    if (layer < -n_layers || layer >= n_layers)
      throw InputError(str("layer ", layer, " is outside the model's ", n_layers));
    if (layer < 0) layer += n_layers;
  }
  return layers;
}

void check_alike(const Trace& clean, const Trace& corrupted) {
  if (&clean.model() != &corrupted.model()) throw InputError("patching: the two traces are of different models");
  if (clean.length() != corrupted.length() || clean.batch() != corrupted.batch())
    throw ShapeError(str("patching needs two prompts of equal length in tokens; found ", clean.length(), " and ",
                         corrupted.length()));
}

at::Tensor scalar_of(const Metric& metric, const at::Tensor& logits) {
  at::Tensor number = metric.value(logits);
  if (!number.defined() || number.numel() != 1)
    throw ShapeError(str("a metric is one number; found ", number.defined() ? shape_text(number.sizes()) : "nothing"));
  return number;
}

double number_of(const Metric& metric, const at::Tensor& logits) { return scalar_of(metric, logits).item<double>(); }

// Forks of a trace whose logits are read together at the positions that are expected to be asked for.
int64_t runs_at_once(const Trace& trace, const std::optional<Positions>& expected) {
  if (!expected) return 1;
  constexpr int64_t kMaxRows = 8192, kMaxLogits = int64_t{1} << 27;
  const int64_t n_positions = *expected ? static_cast<int64_t>((*expected)->size()) : trace.length();
  const int64_t n_logits = std::max<int64_t>(1, trace.batch() * n_positions) * trace.model().config().d_vocab;
  return std::max<int64_t>(1, std::min(kMaxRows / (trace.batch() * trace.length()), kMaxLogits / n_logits));
}

}  // namespace

at::Tensor PatchedRun::logits(const Positions& positions) {
  for (const auto& [there, value] : known_)
    if (there == positions) return value;
  const at::NoGradGuard no_grad;
  known_.emplace_back(positions, trace_.read("logits", positions));
  return known_.back().second;
}

// Computes the logits of several runs together.
class PatchSweep {
 public:
  static void read(const std::vector<std::shared_ptr<PatchedRun>>& runs, const Positions& positions) {
    const at::NoGradGuard no_grad;
    std::vector<Trace*> traces;
    for (const auto& run : runs) traces.push_back(&run->trace_);
    const std::vector<at::Tensor> logits = read_all(traces, "logits", positions);
    for (size_t i = 0; i < runs.size(); ++i) runs[i]->known_.emplace_back(positions, logits[i]);
  }

  static std::shared_ptr<PatchedRun> make(const Trace& trace, const Patch& patch) {
    Trace fork = trace.fork();
    fork.set(patch.node, patch.value.detach(), patch.region);
    return std::make_shared<PatchedRun>(std::move(fork));
  }

  // What the next runs will be asked for, by what this one was: the positions that it was asked for last.
  static std::optional<Positions> asked(const PatchedRun& run) {
    return run.known_.empty() ? std::nullopt : std::optional<Positions>(run.known_.back().first);
  }
};

void sweep_patches(Trace& trace, int64_t n_runs, const std::function<Patch(int64_t i)>& patch,
                   const std::function<void(int64_t i, const std::shared_ptr<PatchedRun>& run)>& take,
                   const std::optional<Positions>& positions) {
  {
    const at::NoGradGuard no_grad;
    trace.read("logits", std::vector<int64_t>{-1});  // What the forks share.
  }
  std::optional<Positions> expected = positions;
  for (int64_t begin = 0; begin < n_runs;) {
    const int64_t end = std::min(n_runs, begin + runs_at_once(trace, expected));
    std::vector<std::shared_ptr<PatchedRun>> runs;
    for (int64_t i = begin; i < end; ++i) runs.push_back(PatchSweep::make(trace, patch(i)));
    if (expected) PatchSweep::read(runs, *expected);
    for (int64_t i = begin; i < end; ++i) {
      std::shared_ptr<PatchedRun> run = std::move(runs[static_cast<size_t>(i - begin)]);
      take(i, run);
      if (i + 1 == end) expected = PatchSweep::asked(*run);
    }
    begin = end;
  }
}

Metric logit_difference(int64_t answer, int64_t versus, int64_t position) {
  const auto value = [answer, versus](const at::Tensor& logits) {
    return (logits.select(-1, answer) - logits.select(-1, versus)).mean();
  };
  return {value, std::vector<int64_t>{position}};
}

at::Tensor PatchResult::recovered() const { return (values - corrupted) / (clean - corrupted); }

PatchResult activation_patching(Trace& clean, Trace& corrupted, const Metric& metric, const PatchOptions& options) {
  check_alike(clean, corrupted);
  const std::vector<int64_t> layers = chosen_layers(options, clean.model().config().n_layers);
  std::vector<int64_t> shape;
  const std::vector<Place> list = places(clean.model().graph(), options, layers, clean.length(), shape);
  PatchResult result;
  result.axes = {"layer"};
  if (options.by_position) result.axes.push_back("pos");
  if (options.by_head) result.axes.push_back("head");
  const at::NoGradGuard no_grad;
  result.clean = number_of(metric, clean.read("logits", metric.positions));
  result.corrupted = number_of(metric, corrupted.read("logits", metric.positions));
  std::vector<double> values;
  const auto patch = [&](int64_t i) {
    const Place& place = list[static_cast<size_t>(i)];
    return Patch{place.node->name, value_of(clean, place), place.region};
  };
  const auto take = [&](int64_t i, const std::shared_ptr<PatchedRun>& run) {
    values.push_back(number_of(metric, run->logits(metric.positions)));
    if (options.progress) options.progress(i + 1, static_cast<int64_t>(list.size()));
  };
  sweep_patches(corrupted, static_cast<int64_t>(list.size()), patch, take, metric.positions);
  result.values = at::tensor(values, at::TensorOptions(at::kDouble)).reshape(shape);
  return result;
}

std::vector<NodeAttribution> attribution_patching(Trace& clean, Trace& corrupted, const Metric& metric,
                                                  const std::vector<std::string>& nodes) {
  check_alike(clean, corrupted);
  const Graph& graph = clean.model().graph();
  std::vector<std::string> names;
  for (const std::string& name : nodes) names.push_back(graph.node(graph.find(name)).name);
  if (nodes.empty())
    for (const Node& node : graph.nodes())
      if (!node.is_input) names.push_back(node.name);
  Trace run = corrupted.fork();
  std::vector<at::Tensor> gradients;
  {
    const at::AutoGradMode on(true);
    run.require_grad();
    gradients = run.grad(scalar_of(metric, run.read("logits", metric.positions)), names, nodes.empty());
  }
  const at::NoGradGuard no_grad;
  std::vector<NodeAttribution> attributions;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!gradients[i].defined()) continue;
    const at::Tensor there = clean.read(names[i]), here = run.read(names[i]);
    const at::Tensor difference = (there - here).masked_fill(there == here, 0);  // -inf in both is no difference.
    attributions.push_back({names[i], (difference * gradients[i]).sum(-1)});
  }
  return attributions;
}

}  // namespace glassformer
