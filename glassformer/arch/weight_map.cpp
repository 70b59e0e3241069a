#include "glassformer/arch/weight_map.h"

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// "blocks.12.attn.q.weight" -> {"blocks.{}.attn.q.weight", "12"}; other names have no number.
std::pair<std::string, std::string> split_layer(const std::string& name) {
  constexpr std::string_view kPrefix = "blocks.";
  if (!name.starts_with(kPrefix)) return {name, ""};
  const size_t end = name.find('.', kPrefix.size());
  return {std::string(kPrefix) + "{}" + name.substr(end), name.substr(kPrefix.size(), end - kPrefix.size())};
}

std::string fill(std::string pattern, const std::string& layer) {
  const size_t place = pattern.find("{}");
  return place == std::string::npos ? pattern : pattern.replace(place, 2, layer);
}

void add_linear(std::vector<WeightSpec>& specs, const std::string& name, int64_t rows, int64_t columns, bool bias) {
  specs.push_back({name + ".weight", {rows, columns}});
  if (bias) specs.push_back({name + ".bias", {rows}});
}

void add_norm(std::vector<WeightSpec>& specs, const std::string& name, int64_t width, Norm norm, bool has_weights) {
  if (!has_weights || norm == Norm::kNone) return;
  specs.push_back({name + ".weight", {width}});
  if (norm == Norm::kLayerNorm) specs.push_back({name + ".bias", {width}});
}

void add_norm(std::vector<WeightSpec>& specs, const std::string& name, const ModelConfig& config) {
  add_norm(specs, name, config.d_model, config.norm, config.norm_weights);
}

bool has_position_table(const ModelConfig& config) {
  return config.positions == PositionEmbedding::kLearned || config.positions == PositionEmbedding::kShortformer;
}

void add_mlp(std::vector<WeightSpec>& specs, const std::string& block, const ModelConfig& config) {
  add_norm(specs, block + "ln2", config);
  if (config.gated_mlp) add_linear(specs, block + "mlp.gate", config.d_mlp, config.d_model, config.biases.mlp_gate);
  add_linear(specs, block + "mlp.in", config.d_mlp, config.d_model, config.biases.mlp_in);
  if (config.mlp_norm) add_norm(specs, block + "mlp.ln", config.d_mlp, Norm::kLayerNorm, config.mlp_norm_weights);
  add_linear(specs, block + "mlp.out", config.d_model, config.d_mlp, config.biases.mlp_out);
}

}  // namespace

std::vector<WeightSpec> weight_specs(const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  specs.push_back({"embed.weight", {config.d_vocab, config.d_model}});
  if (has_position_table(config)) specs.push_back({"pos_embed.weight", {config.n_ctx, config.d_model}});
  const int64_t q_rows = config.n_heads * config.d_head, kv_rows = config.n_kv_heads * config.d_head;
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string block = str("blocks.", layer, ".");
    add_norm(specs, block + "ln1", config);
    add_linear(specs, block + "attn.q", q_rows, config.d_model, config.biases.q);
    add_linear(specs, block + "attn.k", kv_rows, config.d_model, config.biases.k);
    add_linear(specs, block + "attn.v", kv_rows, config.d_model, config.biases.v);
    add_linear(specs, block + "attn.o", config.d_model, q_rows, config.biases.o);
    if (!config.attention_only) add_mlp(specs, block, config);
  }
  add_norm(specs, "ln_final", config);
  add_linear(specs, "unembed", config.d_vocab_out, config.d_model, config.biases.unembed);
  return specs;
}

WeightSource find_source(const std::vector<WeightRule>& rules, const std::vector<WeightSpec>& specs,
                         const WeightSpec& weight, const std::function<bool(const std::string&)>& exists) {
  WeightSource first;
  const auto [pattern, layer] = split_layer(weight.name);
  for (const WeightRule& rule : rules) {
    const auto found = std::find(rule.weights.begin(), rule.weights.end(), pattern);
    if (found == rule.weights.end()) continue;
    WeightSource source{fill(rule.source, layer), rule.layout, 0, 0};
    for (auto part = rule.weights.begin(); part != rule.weights.end(); ++part) {
      const std::string name = fill(*part, layer);
      const auto spec = std::find_if(specs.begin(), specs.end(), [&](const WeightSpec& s) { return s.name == name; });
      if (spec == specs.end()) continue;
      if (part == found) source.first_row = source.tensor_rows;
      source.tensor_rows += spec->shape[0];
    }
    if (!exists || exists(source.tensor)) return source;
    if (first.tensor.empty()) first = std::move(source);
  }
  return first;
}

std::vector<int64_t> stored_shape(const WeightSource& source, const WeightSpec& weight, int64_t d_head) {
  std::vector<int64_t> shape = weight.shape;
  shape[0] = source.tensor_rows;
  switch (source.layout) {
    case Layout::kRows:
    case Layout::kRotaryPairs:
      return shape;
    case Layout::kColumns:
      return {shape[1], shape[0]};
    case Layout::kByHead:
      return {shape[0] / d_head, d_head};
    case Layout::kColumnsByHead:
      return {shape[0] / d_head, shape[1], d_head};
    case Layout::kRowsByHead:
      return {shape[1] / d_head, d_head, shape[0]};
  }
  return shape;
}

}  // namespace glassformer
