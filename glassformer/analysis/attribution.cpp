#include "glassformer/analysis/attribution.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// What a vector in the residual stream adds to the logit: its product with `direction`, over the norm's scale.
struct Readout {
  at::Tensor direction;  // d_model
  at::Tensor scale;      // batch 1
  double bias = 0;

  at::Tensor operator()(const at::Tensor& vectors) const {  // … batch d_model -> … batch
    return vectors.to(direction.scalar_type()).matmul(direction) / scale.squeeze(-1);
  }
};

at::ScalarType wide(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor unembedding(const Weights& weights, int64_t token, const std::optional<int64_t>& versus,
                       at::ScalarType dtype) {
  const at::Tensor& table = weights.get("unembed.weight");
  const at::Tensor column = table[token].to(dtype);
  return versus ? column - table[*versus].to(dtype) : column;
}

Readout readout(Trace& trace, int64_t token, const std::optional<int64_t>& versus, int64_t position) {
  const Model& model = trace.model();
  const Weights& weights = model.weights();
  const at::ScalarType dtype = wide(weights.dtype());
  const at::Tensor column = unembedding(weights, token, versus, dtype);
  Readout made;
  made.direction = weights.has("ln_final.weight") ? column * weights.get("ln_final.weight").to(dtype) : column;
  if (model.config().last_norm() == Norm::kLayerNorm)
    made.direction = made.direction - made.direction.mean();  // Centring the stream is centring the direction.
  if (weights.has("ln_final.bias")) made.bias = weights.get("ln_final.bias").to(dtype).dot(column).item<double>();
  if (weights.has("unembed.bias")) {
    const at::Tensor& bias = weights.get("unembed.bias");
    made.bias += bias[token].item<double>() - (versus ? bias[*versus].item<double>() : 0.0);
  }
  made.scale = model.config().norm == Norm::kNone
                   ? at::ones({1, 1}, at::TensorOptions(dtype).device(weights.device()))
                   : trace.read("ln_final.hook_scale", Positions{{position}}).squeeze(1).to(dtype);
  return made;
}

// What each head adds to the residual stream: through the norms behind attention, with the scales that they have here.
at::Tensor head_results(Trace& trace, const std::string& block, int64_t position) {
  const Weights& weights = trace.model().weights();
  const Positions at{{position}};
  at::Tensor results = trace.read(block + "attn.hook_result", at).squeeze(1);  // batch head d_model
  for (const std::string& norm : trace.model().config().norms_behind("ln1")) {
    if (trace.model().config().norm == Norm::kLayerNorm) results = results - results.mean(-1, true);
    results = results / trace.read(block + norm + ".hook_scale", at);
    if (weights.has(block + norm + ".weight")) results = results * weights.get(block + norm + ".weight");
  }
  return results;
}

}  // namespace

AttributionResult direct_logit_attribution(Trace& trace, int64_t token, std::optional<int64_t> versus,
                                           int64_t position) {
  const at::NoGradGuard no_grad;
  const Model& model = trace.model();
  const ModelConfig& config = model.config();
  for (int64_t id : {token, versus.value_or(token)})
    if (id < 0 || id >= config.d_vocab_out)
      throw InputError(str("token ", id, " is outside the vocabulary of ", config.d_vocab_out));
  const Readout read = readout(trace, token, versus, position);
  const auto vector_at = [&](const std::string& node) { return trace.read(node, Positions{{position}}).squeeze(1); };
  AttributionResult result;
  const auto add = [&](std::string name, const char* kind, int64_t layer, const at::Tensor& logit) {
    result.components.push_back({std::move(name), kind, layer, logit});
  };
  add("embed", "embed", -1, read(vector_at("hook_embed")));
  if (config.positions == PositionEmbedding::kLearned) add("pos_embed", "embed", -1, read(vector_at("hook_pos_embed")));
  std::vector<at::Tensor> heads;
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string block = str("blocks.", layer, ".");
    add(str(layer, ".attn"), "attn", layer, read(vector_at(block + "hook_attn_out")));
    if (!config.attention_only) add(str(layer, ".mlp"), "mlp", layer, read(vector_at(block + "hook_mlp_out")));
    heads.push_back(read(head_results(trace, block, position).transpose(0, 1)));
  }
  const at::Tensor& some = result.components.front().logit;
  if (read.bias != 0) add("bias", "bias", -1, at::zeros(some.sizes(), some.options()) + read.bias);
  result.heads = at::stack(heads);
  const at::Tensor logits = vector_at("unembed.hook_out").to(some.scalar_type());  // Of which the parts are parts.
  result.logit = logits.select(1, token);
  if (versus) result.logit = result.logit - logits.select(1, *versus);
  return result;
}

}  // namespace glassformer
