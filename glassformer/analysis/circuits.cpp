#include "glassformer/analysis/circuits.h"

#include <ATen/core/Tensor.h>

#include <string>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

at::Tensor weight(const Model& model, int64_t layer, const char* part) {
  return model.weights().get(str("blocks.", layer, ".attn.", part, ".weight"));
}

// `head d_model d_head`
at::Tensor reading(const Model& model, int64_t layer, const char* part) {
  const ModelConfig& config = model.config();
  const at::Tensor heads = weight(model, layer, part).unflatten(0, {-1, config.d_head}).transpose(1, 2);
  return heads.size(0) == config.n_heads ? heads : heads.repeat_interleave(config.n_heads / heads.size(0), 0);
}

}  // namespace

FactoredMatrix qk_circuits(const Model& model, int64_t layer) {
  return {reading(model, layer, "q"), reading(model, layer, "k").transpose(1, 2)};
}

FactoredMatrix ov_circuits(const Model& model, int64_t layer) {
  return {reading(model, layer, "v"), weight(model, layer, "o").t().unflatten(0, {-1, model.config().d_head})};
}

}  // namespace glassformer
