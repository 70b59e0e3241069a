#pragma once
// Random models of a few thousand parameters, every one of them away from its usual start value.

#include <ATen/TensorOperators.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "glassformer/arch/architecture.h"
#include "glassformer/graph/model.h"

namespace glassformer {

inline std::map<std::string, at::Tensor> tiny_tensors(const std::string& config_json) {
  const DescribedModel described = describe(config_json, "config.json");
  std::map<std::string, at::Tensor> tensors;
  const std::vector<WeightSpec> specs = weight_specs(described.config);
  for (const WeightSpec& spec : specs) {
    if (spec.name == "unembed.weight" && described.config.tied_unembed) continue;
    const WeightSource source = find_source(described.architecture->weights, specs, spec);
    const std::vector<int64_t> shape = stored_shape(source, spec, described.config.d_head);
    if (!tensors.contains(source.tensor)) tensors[source.tensor] = at::randn(shape, at::kDouble) * 0.3;
  }
  return tensors;
}

inline std::shared_ptr<const Model> tiny_model(const std::string& config_json) {
  return Model::from_tensors(config_json, tiny_tensors(config_json), {at::kDouble, at::kCPU});
}

inline constexpr const char* kTinyGpt2 =
    R"({"model_type": "gpt2", "n_layer": 3, "n_embd": 12, "n_head": 3, "vocab_size": 29, "n_positions": 40})";

inline std::shared_ptr<const Model> tiny_gpt2() { return tiny_model(kTinyGpt2); }

inline std::shared_ptr<const Model> tiny_llama() {
  return tiny_model(R"({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 20, "vocab_size": 31, "max_position_embeddings": 12, "head_dim": 6,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}, "attention_bias": true})");
}

inline at::Tensor some_tokens(const Model& model, int64_t batch, int64_t length) {
  return at::randint(model.config().d_vocab, {batch, length}, at::kLong);
}

/// To 1e-10 of the largest value.
inline bool close(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         (a - b).abs().max().item<double>() <= 1e-10 * std::max(1.0, b.abs().max().item<double>());
}

}  // namespace glassformer
