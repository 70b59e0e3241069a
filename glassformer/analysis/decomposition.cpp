#include "glassformer/analysis/decomposition.h"

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

int64_t checked_layer(const Model& model, std::optional<int64_t> layer) {
  const int64_t n_layers = model.config().n_layers;
  if (layer && (*layer < 0 || *layer >= n_layers))
    throw InputError(str("layer ", *layer, " is outside the model's ", n_layers));
  return layer.value_or(n_layers);
}

FrozenNorm frozen(Trace& trace, const std::string& name, Norm kind, const Positions& positions) {
  const Weights& weights = trace.model().weights();
  FrozenNorm norm{trace.read(name + ".hook_scale", positions), kind == Norm::kLayerNorm, {}};
  if (weights.has(name + ".weight")) norm.weight = weights.get(name + ".weight");
  return norm;
}

class Decomposer {
 public:
  Decomposer(Trace& trace, const DecompositionOptions& options)
      : trace_(trace), config_(trace.model().config()), options_(options) {}

  Decomposition run() {
    const int64_t end = checked_layer(trace_.model(), options_.layer);
    add_whole({"embed", "embed"}, "hook_embed");
    if (config_.positions == PositionEmbedding::kLearned) add_whole({"pos_embed", "embed"}, "hook_pos_embed");
    for (int64_t layer = 0; layer < end; ++layer) {
      const std::string block = str("blocks.", layer, ".");
      if (options_.heads) {
        add_heads(layer, block);
      } else {
        add_whole({str(layer, ".attn"), "attn", layer}, block + "hook_attn_out");
      }
      if (config_.attention_only) continue;
      if (options_.neurons) {
        add_neurons(layer, block);
      } else {
        add_whole({str(layer, ".mlp"), "mlp", layer}, block + "hook_mlp_out");
      }
    }
    if (!biases_.empty()) {
      made_.labels.push_back({"bias", "bias"});
      made_.parts.add_bias(biases_);
    }
    return std::move(made_);
  }

 private:
  at::Tensor read(const std::string& node) { return trace_.read(node, options_.positions); }

  void add_whole(PartLabel label, const std::string& node) {
    made_.labels.push_back(std::move(label));
    made_.parts.add(read(node).unsqueeze(0));
  }

  // The norm between attention or MLP and the stream, whose own bias goes straight there.
  std::optional<FrozenNorm> norm_behind(const std::string& block, const std::string& ln) {
    const std::vector<std::string> names = config_.norms_behind(ln);
    if (names.empty()) return std::nullopt;
    if (names.size() > 1)
      throw UnsupportedError(str("parts behind two norms (", block, names[0], ", ", block, names[1],
                                 ") are not supported; decompose without heads and neurons"));
    add_bias(block + names[0] + ".bias", std::nullopt);
    return frozen(trace_, block + names[0], config_.norm, options_.positions);
  }

  void add_bias(const std::string& name, const std::optional<FrozenNorm>& after) {
    const Weights& weights = trace_.model().weights();
    if (weights.has(name)) biases_.emplace_back(weights.get(name), after);
  }

  void add_heads(int64_t layer, const std::string& block) {
    const std::optional<FrozenNorm> after = norm_behind(block, "ln1");
    made_.parts.add_heads(read(block + "attn.hook_result"), after);
    add_bias(block + "attn.o.bias", after);
    for (int64_t head = 0; head < config_.n_heads; ++head)
      made_.labels.push_back({str(layer, ".", head), "head", layer, head});
  }

  void add_neurons(int64_t layer, const std::string& block) {
    if (config_.experts.count > 0)
      throw UnsupportedError("neurons of experts as parts of the stream are not supported");
    const std::optional<FrozenNorm> after = norm_behind(block, "ln2");
    made_.parts.add_neurons(read(block + "mlp.hook_post"), trace_.model().weights().get(block + "mlp.out.weight").t(),
                            after);
    add_bias(block + "mlp.out.bias", after);
    for (int64_t neuron = 0; neuron < config_.d_mlp; ++neuron)
      made_.labels.push_back({str(layer, ".mlp.", neuron), "neuron", layer, neuron});
  }

  Trace& trace_;
  const ModelConfig& config_;
  const DecompositionOptions& options_;
  Decomposition made_;
  std::vector<std::pair<at::Tensor, std::optional<FrozenNorm>>> biases_;
};

}  // namespace

Decomposition decompose_stream(Trace& trace, const DecompositionOptions& options) {
  return Decomposer(trace, options).run();
}

std::optional<FrozenNorm> reading_norm(Trace& trace, std::optional<int64_t> layer, const Positions& positions) {
  const Model& model = trace.model();
  const ModelConfig& config = model.config();
  const bool final = checked_layer(model, layer) == config.n_layers;
  if (config.norm == Norm::kNone || (config.norms_after && !final)) return std::nullopt;
  if (final) return frozen(trace, "ln_final", config.last_norm(), positions);
  return frozen(trace, str("blocks.", *layer, ".ln1"), config.norm, positions);
}

}  // namespace glassformer
