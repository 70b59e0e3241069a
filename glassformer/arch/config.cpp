#include "glassformer/arch/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// kXielu and kClampedGlu come with weights and biases of their own: an architecture asks for them itself.
constexpr std::array<std::pair<const char*, Activation>, 11> kActivations = {{
    {"relu", Activation::kRelu},
    {"relu2", Activation::kReluSquared},
    {"gelu", Activation::kGelu},
    {"gelu_new", Activation::kGeluTanh},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh},
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"tanh", Activation::kTanh},
    {"quick_gelu", Activation::kQuickGelu},
    {"solu", Activation::kSolu},
}};

// All of this in the reference's order of float32 operations, so that tables agree to the last bit.

double yarn_correction(double rotations, const Rope& rope) {
  const double turns = static_cast<double>(rope.original_n_ctx) / (rotations * 2 * std::numbers::pi);
  return static_cast<double>(rope.dims) * std::log(turns) / (2 * std::log(rope.base));
}

std::vector<float> yarn_frequencies(const Rope& rope, const std::vector<float>& powers) {
  double low = yarn_correction(rope.beta_fast, rope), high = yarn_correction(rope.beta_slow, rope);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.dims - 1));
  if (low == high) high += 0.001;
  std::vector<float> frequencies(powers.size());
  for (size_t i = 0; i < powers.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0F, 1.0F);
    const float keep = 1.0F - ramp;
    const float interpolated = 1.0F / (static_cast<float>(rope.factor) * powers[i]);
    frequencies[i] = interpolated * (1.0F - keep) + (1.0F / powers[i]) * keep;
  }
  return frequencies;
}

float llama3_frequency(const Rope& rope, float plain) {
  const auto context = static_cast<float>(rope.original_n_ctx), factor = static_cast<float>(rope.factor);
  const auto low = static_cast<float>(rope.low_freq_factor), high = static_cast<float>(rope.high_freq_factor);
  const float wavelength = (1.0F / plain) * static_cast<float>(2 * std::numbers::pi);
  if (wavelength < context / high) return plain;
  if (wavelength > context / low) return plain / factor;
  const float smooth = ((1.0F / wavelength) * context - low) / (high - low);
  return (1.0F - smooth) * plain / factor + smooth * plain;
}

// base^(2i / dims): what a position is divided by.
std::vector<float> rotary_powers(int64_t dims, double base) {
  std::vector<float> powers(static_cast<size_t>(dims / 2));
  for (size_t i = 0; i < powers.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dims);
    powers[i] = std::pow(static_cast<float>(base), exponent);
  }
  return powers;
}

// 1 up to the trained context, then 3, 7, 15, …, at each doubling of the length.
double stepped_ntk(const Rope& rope, int64_t length) {
  if (length <= rope.original_n_ctx) return 1;
  const double doublings = std::log2(static_cast<double>(length) / static_cast<double>(rope.original_n_ctx));
  return std::max(std::exp2(std::ceil(doublings + 1)) - 1, 1.0);
}

std::vector<float> scaled_frequencies(const Rope& rope, int64_t length) {
  double base = rope.base;
  if (rope.scaling == RopeScaling::kDynamic) {
    const auto context = static_cast<double>(rope.n_ctx);
    const auto tokens = static_cast<double>(std::max(length, rope.n_ctx));
    const auto dims = static_cast<double>(rope.dims);
    base *= std::pow(rope.factor * tokens / context - (rope.factor - 1), dims / (dims - 2));
  }
  if (rope.scaling == RopeScaling::kSteppedNtk) {
    const auto dims = static_cast<double>(rope.dims);
    base *= std::pow(stepped_ntk(rope, length), dims / (dims - 2));
  }
  const std::vector<float> powers = rotary_powers(rope.dims, base);
  std::vector<float> frequencies;
  for (float power : powers) frequencies.push_back(1.0F / power);
  switch (rope.scaling) {
    case RopeScaling::kNone:
    case RopeScaling::kDynamic:
    case RopeScaling::kSteppedNtk:
      break;
    case RopeScaling::kLinear:
      for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
      break;
    case RopeScaling::kLlama3:
      for (float& frequency : frequencies) frequency = llama3_frequency(rope, frequency);
      break;
    case RopeScaling::kYarn:
      return yarn_frequencies(rope, powers);
    case RopeScaling::kLongRope: {
      const std::vector<double>& factors = length > rope.original_n_ctx ? rope.long_factor : rope.short_factor;
      for (size_t i = 0; i < frequencies.size(); ++i)
        frequencies[i] = 1.0F / (static_cast<float>(factors[i]) * powers[i]);
      break;
    }
  }
  return frequencies;
}

}  // namespace

void check_config(const ModelConfig& config, const std::string& path) {
  const auto positive = [&](int64_t value, const char* what) {
    constexpr int64_t kLargest = int64_t{1} << 40;
    if (value <= 0 || value > kLargest) throw FileError(path, str(what, " is ", value, "; expected a positive number"));
  };
  positive(config.n_layers, "the number of layers");
  positive(config.n_heads, "the number of heads");
  positive(config.n_kv_heads, "the number of key-value heads");
  positive(config.d_model, "the width of the residual stream");
  positive(config.d_head, "the width of a head");
  if (!config.attention_only) positive(config.d_mlp, "the width of the MLP");
  positive(config.d_vocab, "the size of the vocabulary");
  positive(config.d_vocab_out, "the size of the output vocabulary");
  positive(config.n_ctx, "the context length");
  if (config.n_heads % config.n_kv_heads != 0)
    throw FileError(path, str(config.n_heads, " heads can't share ", config.n_kv_heads, " key-value heads evenly"));
  if (config.positions == PositionEmbedding::kRotary &&
      (config.rope.dims <= 0 || config.rope.dims > config.d_head || config.rope.dims % 2 != 0))
    throw FileError(path, str("rotary embedding of ", config.rope.dims, " dimensions; expected an even number up to ",
                              config.d_head));
  const Experts& experts = config.experts;
  if (experts.count < 0 || (experts.count > 0 && (experts.per_token < 1 || experts.per_token > experts.count)))
    throw FileError(path, str(experts.per_token, " of ", experts.count, " experts for each token"));
  if (config.layers.size() != static_cast<size_t>(config.n_layers))
    throw FileError(path, str(config.layers.size(), " layers are described; expected ", config.n_layers));
}

bool ModelConfig::has_local_rope() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& layer) { return layer.local_rope; });
}

std::vector<std::string> ModelConfig::norms_behind(const std::string& ln) const {
  std::vector<std::string> names;
  if (norm == Norm::kNone) return names;
  if (second_norms) names.push_back(ln + "_post");
  if (norms_after) names.push_back(ln);
  return names;
}

Activation activation_named(const std::string& name, const std::string& path) {
  std::string known;
  for (const auto& [candidate, activation] : kActivations) {
    if (name == candidate) return activation;
    known += (known.empty() ? "" : ", ") + std::string(candidate);
  }
  throw UnsupportedError(str(path, ": activation '", name, "' is not supported; supported: ", known));
}

const char* name_of(Activation activation) {
  for (const auto& [name, candidate] : kActivations)
    if (candidate == activation) return name;
  return activation == Activation::kXielu ? "xielu" : "clamped_glu";
}

const char* name_of(Norm norm) {
  switch (norm) {
    case Norm::kLayerNorm:
      return "layer norm";
    case Norm::kRmsNorm:
      return "RMS norm";
    case Norm::kNone:
      return "none";
  }
  return "?";
}

const char* name_of(PositionEmbedding positions) {
  switch (positions) {
    case PositionEmbedding::kLearned:
      return "learned";
    case PositionEmbedding::kRotary:
      return "rotary";
    case PositionEmbedding::kShortformer:
      return "shortformer";
    case PositionEmbedding::kAlibi:
      return "alibi";
  }
  return "?";
}

const char* name_of(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::kNone:
      return "default";
    case RopeScaling::kLinear:
      return "linear";
    case RopeScaling::kDynamic:
      return "dynamic";
    case RopeScaling::kSteppedNtk:
      return "stepped NTK";
    case RopeScaling::kYarn:
      return "yarn";
    case RopeScaling::kLongRope:
      return "longrope";
    case RopeScaling::kLlama3:
      return "llama3";
  }
  return "?";
}

std::vector<float> inverse_frequencies(const Rope& rope, int64_t length) {
  std::vector<float> frequencies = scaled_frequencies(rope, length);
  for (size_t i = 0; i < rope.divisors.size(); ++i) frequencies[i] /= static_cast<float>(rope.divisors[i]);
  return frequencies;
}

int64_t length_class(const Rope& rope, int64_t length) {
  if (rope.scaling == RopeScaling::kDynamic) return std::max(length, rope.n_ctx);
  if (rope.scaling == RopeScaling::kSteppedNtk) {
    int64_t first = 0;
    for (int64_t reached = rope.original_n_ctx; reached < length; reached *= 2) first = reached + 1;
    return first;
  }
  if (rope.scaling == RopeScaling::kLongRope) return length > rope.original_n_ctx ? rope.original_n_ctx + 1 : 0;
  return 0;
}

}  // namespace glassformer
