#include "glassformer/analysis/attribution.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/stack.h>

#include "glassformer/analysis/decomposition.h"
#include "glassformer/base/errors.h"

namespace glassformer {

AttributionResult direct_logit_attribution(Trace& trace, int64_t token, std::optional<int64_t> versus,
                                           int64_t position) {
  const at::NoGradGuard no_grad;
  const Weights& weights = trace.model().weights();
  const ModelConfig& config = trace.model().config();
  for (int64_t id : {token, versus.value_or(token)})
    if (id < 0 || id >= config.d_vocab_out)
      throw InputError(str("token ", id, " is outside the vocabulary of ", config.d_vocab_out));
  const at::ScalarType dtype = weights.dtype() == at::kDouble ? at::kDouble : at::kFloat;
  const auto of_token = [&](const at::Tensor& values, int64_t axis) {
    const at::Tensor one = values.select(axis, token).to(dtype);
    return versus ? one - values.select(axis, *versus).to(dtype) : one;
  };
  const Positions at{{position}};
  const at::Tensor direction = of_token(weights.get("unembed.weight"), 0);
  const std::optional<FrozenNorm> norm = reading_norm(trace, {}, at);
  const auto of_parts = [&](const Decomposition& stream) {
    return logit_attributions(stream.parts.stack(), direction, {}, norm).squeeze(-1).unbind();  // batch, of each part
  };
  AttributionResult result;
  const Decomposition stream = decompose_stream(trace, {.positions = at});
  const std::vector<at::Tensor> logits = of_parts(stream);
  for (size_t i = 0; i < logits.size(); ++i)
    result.components.push_back({stream.labels[i].name, stream.labels[i].kind, stream.labels[i].layer, logits[i]});
  double bias = 0;
  if (weights.has("ln_final.bias")) bias = weights.get("ln_final.bias").to(dtype).dot(direction).item<double>();
  if (weights.has("unembed.bias")) bias += of_token(weights.get("unembed.bias"), 0).item<double>();
  if (bias != 0) result.components.push_back({"bias", "bias", -1, at::full_like(logits[0], bias)});
  const Decomposition by_head = decompose_stream(trace, {.heads = true, .positions = at});
  const std::vector<at::Tensor> head_logits = of_parts(by_head);
  std::vector<at::Tensor> heads;
  for (size_t i = 0; i < head_logits.size(); ++i)
    if (by_head.labels[i].kind == "head") heads.push_back(head_logits[i]);
  result.heads = at::stack(heads).unflatten(0, {config.n_layers, config.n_heads});
  result.logit = of_token(trace.read("unembed.hook_out", at).squeeze(1), 1);  // Of which the parts are parts.
  return result;
}

}  // namespace glassformer
