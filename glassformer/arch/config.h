#pragma once
// What a model is, as data: one universal decoder block with switches, and the values that each architecture gives
// them.

#include <cstdint>
#include <string>
#include <vector>

namespace glassformer {

enum class Norm { kLayerNorm, kRmsNorm, kNone };
enum class PositionEmbedding {
  kLearned,
  kRotary,
  kShortformer,  // Learned, and added to what queries and keys are made of instead of to the residual stream.
  kAlibi,        // Scores fall with the distance, in each head by another slope.
};
enum class Activation { kRelu, kGelu, kGeluTanh, kSilu, kTanh, kQuickGelu, kSolu };
enum class RopeScaling { kNone, kLinear, kDynamic, kYarn, kLongRope, kLlama3 };

/// Rotary position embedding: `dims` of each head's dimensions turn, as two halves or as pairs of neighbours, by
/// position / base^(2i / dims), with the scaling of that name in transformers.
struct Rope {
  int64_t dims = 0;
  double base = 10000.0;
  bool adjacent_pairs = false;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  int64_t original_n_ctx = 0;                            // The context that the model was first trained with.
  int64_t n_ctx = 0;                                     // The context of the model as it is.
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool truncate = true;                                  // yarn
  double attention_factor = 1.0;                         // Multiplies cosines and sines.
  std::vector<double> short_factor, long_factor;         // longrope
  std::vector<double> divisors;                          // Of the frequencies, where a file gives one for each.
};

/// What may differ from layer to layer.
struct LayerConfig {
  double attention_scale = 1.0;  // Multiplies query-key products.
  int64_t window = 0;            // A query sees this many keys, itself among them; 0 means all before it.
};

/// Which weights have a bias beside them.
struct Biases {
  bool q = false, k = false, v = false, o = false;
  bool mlp_in = false, mlp_gate = false, mlp_out = false;
  bool unembed = false;
};

struct ModelConfig {
  std::string architecture;  // transformers' model_type
  int64_t n_layers = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t d_model = 0;
  int64_t d_head = 0;
  int64_t d_mlp = 0;
  int64_t d_vocab = 0;
  int64_t d_vocab_out = 0;  // Of the logits; 0 in what a file says means d_vocab.
  int64_t n_ctx = 0;        // The longest input in tokens.
  Norm norm = Norm::kLayerNorm;
  bool norm_weights = true;  // False: norms only divide, and what follows has their weights in it.
  double norm_eps = 1e-5;
  PositionEmbedding positions = PositionEmbedding::kLearned;
  Rope rope;
  Activation activation = Activation::kGeluTanh;
  bool gated_mlp = false;
  bool bias_after_gate = false;  // mlp.in's bias is added to the gated product.
  bool mlp_norm = false;         // A LayerNorm after the activation, over d_mlp.
  bool mlp_norm_weights = true;
  bool attention_only = false;    // No MLP.
  bool parallel = false;          // The MLP reads the block's input, as attention does.
  double score_cap = 0;           // Scores go through cap * tanh(score / cap); 0: as they are.
  double logit_cap = 0;           // Logits too.
  bool tied_unembed = false;      // The unembedding is the embedding.
  bool upcast_attention = false;  // Scores and pattern in float32 whatever the dtype.
  Biases biases;
  std::vector<LayerConfig> layers;

  bool grouped_query() const { return n_kv_heads != n_heads; }
};

/// More layers than this in a config are a damaged file.
inline constexpr int64_t kMostLayers = 10000;

/// Checks what every architecture needs: positive sizes, heads that divide. `path` is for the message; raises
/// `FileError`.
void check_config(const ModelConfig& config, const std::string& path);

/// The activation with transformers' name ("gelu_new", "silu"); `UnsupportedError` otherwise.
Activation activation_named(const std::string& name, const std::string& path);

/// A short name for people ("silu", "layer norm", "learned").
const char* name_of(Activation activation);
const char* name_of(Norm norm);
const char* name_of(PositionEmbedding positions);
const char* name_of(RopeScaling scaling);

/// 1 / wavelength for each of `rope.dims / 2` pairs, in float32 arithmetic as the reference has it, for a sequence of
/// `length` tokens (which matters for dynamic and longrope scaling only).
std::vector<float> inverse_frequencies(const Rope& rope, int64_t length);

/// The smallest length whose frequencies equal those at `length`: sequences of one class share their rotated keys.
int64_t length_class(const Rope& rope, int64_t length);

}  // namespace glassformer
