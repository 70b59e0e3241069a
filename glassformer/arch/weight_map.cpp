#include "glassformer/arch/weight_map.h"

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

struct NumberedName {
  std::string pattern;
  std::vector<std::string> numbers;
};

// "blocks.12.mlp.experts.3.in.weight" -> "blocks.{}.mlp.experts.{}.in.weight", 12 and 3.
NumberedName split_numbers(const std::string& name) {
  NumberedName split;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    if (is_number) split.numbers.push_back(part);
    split.pattern += (begin == 0 ? "" : ".") + (is_number ? "{}" : part);
    begin = end + 1;
  }
  return split;
}

std::string fill(std::string pattern, const std::vector<std::string>& numbers) {
  size_t place = 0;
  for (const std::string& number : numbers) {
    place = pattern.find("{}", place);
    if (place == std::string::npos) break;
    pattern.replace(place, 2, number);
  }
  return pattern;
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

// A norm that has weights whatever the others have.
void add_own_norm(std::vector<WeightSpec>& specs, const std::string& name, const ModelConfig& config) {
  add_norm(specs, name, config.d_model, config.norm, true);
}

bool has_position_table(const ModelConfig& config) {
  return config.positions == PositionEmbedding::kLearned || config.positions == PositionEmbedding::kShortformer;
}

void add_attention(std::vector<WeightSpec>& specs, const std::string& block, const ModelConfig& config) {
  const int64_t q_rows = config.n_heads * config.d_head, kv_rows = config.n_kv_heads * config.d_head;
  const std::string attn = block + "attn.";
  add_norm(specs, block + "ln1", config);
  if (config.second_norms) add_own_norm(specs, block + "ln1_post", config);
  add_linear(specs, attn + "q", q_rows, config.d_model, config.biases.q);
  add_linear(specs, attn + "k", kv_rows, config.d_model, config.biases.k);
  add_linear(specs, attn + "v", kv_rows, config.d_model, config.biases.v);
  if (config.qk_norm != QkNorm::kNone) {
    const bool by_head = config.qk_norm == QkNorm::kByHead;
    add_norm(specs, attn + "q_norm", by_head ? config.d_head : q_rows, Norm::kRmsNorm, true);
    add_norm(specs, attn + "k_norm", by_head ? config.d_head : kv_rows, Norm::kRmsNorm, true);
  }
  if (config.attention_sinks) specs.push_back({attn + "sinks", {config.n_heads}});
  add_linear(specs, attn + "o", config.d_model, q_rows, config.biases.o);
}

void add_experts(std::vector<WeightSpec>& specs, const std::string& mlp, const ModelConfig& config) {
  const bool bias = config.biases.experts;
  add_linear(specs, mlp + "router", config.experts.count, config.d_model, bias);
  for (int64_t number = 0; number < config.experts.count; ++number) {
    const std::string expert = str(mlp, "experts.", number, ".");
    add_linear(specs, expert + "gate", config.d_mlp, config.d_model, bias);
    add_linear(specs, expert + "in", config.d_mlp, config.d_model, bias);
    add_linear(specs, expert + "out", config.d_model, config.d_mlp, bias);
  }
}

void add_mlp(std::vector<WeightSpec>& specs, const std::string& block, const ModelConfig& config) {
  add_norm(specs, block + "ln2", config);
  if (config.second_norms) add_own_norm(specs, block + "ln2_post", config);
  if (config.experts.count > 0) {
    add_experts(specs, block + "mlp.", config);
    return;
  }
  if (config.gated_mlp) add_linear(specs, block + "mlp.gate", config.d_mlp, config.d_model, config.biases.mlp_gate);
  add_linear(specs, block + "mlp.in", config.d_mlp, config.d_model, config.biases.mlp_in);
  if (config.activation == Activation::kXielu)
    for (const char* part : {"mlp.act.alpha_p", "mlp.act.alpha_n"}) specs.push_back({block + part, {1}});
  if (config.mlp_norm) add_norm(specs, block + "mlp.ln", config.d_mlp, Norm::kLayerNorm, config.mlp_norm_weights);
  add_linear(specs, block + "mlp.out", config.d_model, config.d_mlp, config.biases.mlp_out);
}

}  // namespace

std::vector<WeightSpec> weight_specs(const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  specs.push_back({"embed.weight", {config.d_vocab, config.d_model}});
  if (config.embed_norm) add_norm(specs, "embed.ln", config.d_model, Norm::kLayerNorm, true);
  if (has_position_table(config)) specs.push_back({"pos_embed.weight", {config.n_ctx, config.d_model}});
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string block = str("blocks.", layer, ".");
    add_attention(specs, block, config);
    if (!config.attention_only) add_mlp(specs, block, config);
  }
  add_norm(specs, "ln_final", config.d_model, config.last_norm(), config.norm_weights);
  add_linear(specs, "unembed", config.d_vocab_out, config.d_model, config.biases.unembed);
  return specs;
}

WeightSource find_source(const std::vector<WeightRule>& rules, const std::vector<WeightSpec>& specs,
                         const WeightSpec& weight, const std::function<bool(const std::string&)>& exists) {
  WeightSource first;
  const auto [pattern, numbers] = split_numbers(weight.name);
  for (const WeightRule& rule : rules) {
    const auto found = std::find(rule.weights.begin(), rule.weights.end(), pattern);
    if (found == rule.weights.end()) continue;
    WeightSource source{fill(rule.source, numbers), rule.layout, 0, 0};
    if (rule.weights.size() == 1) source.tensor_rows = weight.shape[0];
    for (auto part = rule.weights.begin(); part != rule.weights.end() && rule.weights.size() > 1; ++part) {
      const std::string name = fill(*part, numbers);
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
    case Layout::kScalar:
      return {};
    case Layout::kRowsByHead:
      return {shape[1] / d_head, d_head, shape[0]};
  }
  return shape;
}

}  // namespace glassformer
