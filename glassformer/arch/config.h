#pragma once
// What a model is, as data: one universal decoder block with switches, and the values that each architecture gives
// them.

#include <cstdint>
#include <optional>
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
enum class Activation {
  kRelu,
  kReluSquared,
  kGelu,
  kGeluTanh,
  kSilu,
  kTanh,
  kQuickGelu,
  kSolu,
  kXielu,       // With two weights in each layer.
  kClampedGlu,  // Of GPT-OSS: for gated MLPs only, changes both factors.
};
enum class RopeScaling { kNone, kLinear, kDynamic, kSteppedNtk, kYarn, kLongRope, kLlama3 };
/// An RMS norm of queries and keys: of each head by itself, or of all heads side by side.
enum class QkNorm { kNone, kByHead, kWhole };

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

  bool operator==(const Rope&) const = default;
};

/// What may differ from layer to layer.
struct LayerConfig {
  double attention_scale = 1.0;  // Multiplies query-key products.
  int64_t window = 0;            // A query sees this many keys, itself among them; 0 means all before it.
  bool local_rope = false;       // Turns by the model's `local_rope`.
};

/// Which weights have a bias beside them.
struct Biases {
  bool q = false, k = false, v = false, o = false;
  bool mlp_in = false, mlp_gate = false, mlp_out = false;
  bool experts = false;  // The router and everything in the experts.
  bool unembed = false;
};

/// A mixture of experts in the place of each MLP: gated MLPs, of which each token goes through a few.
struct Experts {
  int64_t count = 0;  // 0: none, but a plain MLP.
  int64_t per_token = 0;
  bool norm_weights = false;  // Those of a token's experts are made to sum to 1.
  bool top_first = false;     // The softmax is over the chosen experts only; else over all.
};

/// What the modules of the reference implementation say of themselves, and nothing here computes with.
struct ReferenceDetails {
  std::string activation;               // As the config calls it: several names are one function.
  std::optional<int64_t> padding = {};  // The token whose embedding gets no gradient there.
  double embed_dropout = 0, pattern_dropout = 0, out_dropout = 0;
};

struct ModelConfig {
  std::string architecture;  // transformers' model_type
  int64_t n_layers = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  bool repeats_kv = false;  // Keys and values are repeated for each head of their group before anything else.
  int64_t d_model = 0;
  int64_t d_head = 0;
  int64_t d_mlp = 0;
  int64_t d_vocab = 0;
  int64_t d_vocab_out = 0;  // Of the logits; 0 in what a file says means d_vocab.
  int64_t n_ctx = 0;        // The longest input in tokens.
  Norm norm = Norm::kLayerNorm;
  bool norm_weights = true;  // False: norms only divide, and what follows has their weights in it.
  double norm_eps = 1e-5;
  bool norms_after = false;   // ln1 and ln2 stand behind attention and MLP, before what these add; else before them.
  bool second_norms = false;  // Behind attention and MLP stand ln1_post and ln2_post, always with weights.
  bool embed_norm = false;    // A LayerNorm of the embedding of tokens, always with weights.
  bool final_rms = false;     // The last norm is an RMS norm whatever the others are.
  QkNorm qk_norm = QkNorm::kNone;
  PositionEmbedding positions = PositionEmbedding::kLearned;
  Rope rope, local_rope;
  Activation activation = Activation::kGeluTanh;
  bool gated_mlp = false;
  bool bias_after_gate = false;  // mlp.in's bias is added to the gated product.
  bool mlp_norm = false;         // A LayerNorm after the activation, over d_mlp.
  bool mlp_norm_weights = true;
  Experts experts;
  bool attention_only = false;   // No MLP.
  bool parallel = false;         // The MLP reads the block's input, as attention does.
  double score_cap = 0;          // Scores go through cap * tanh(score / cap); 0: as they are.
  double logit_cap = 0;          // Logits too.
  double qkv_clip = 0;           // Queries, keys and values lie from -clip to clip; 0: as they are.
  bool attention_sinks = false;  // Each head has a score of its own that takes part in the softmax.
  bool bidirectional = false;    // Queries see all keys.
  int64_t log_n_length = 0;      // Queries at the n-th position, n > this, are multiplied by log n / log this; 0: none.
  bool tied_unembed = false;     // The unembedding is the embedding.
  bool upcast_attention = false;  // Scores and pattern in float32 whatever the dtype.
  Biases biases;
  std::vector<LayerConfig> layers;
  ReferenceDetails reference;

  bool has_local_rope() const;
  /// The norms of a block, in order, between one of its parts ("ln1": attention, "ln2": the MLP) and what that adds.
  std::vector<std::string> norms_behind(const std::string& ln) const;
  Norm last_norm() const { return final_rms && norm != Norm::kNone ? Norm::kRmsNorm : norm; }
  bool grouped_query() const { return n_kv_heads != n_heads; }
  /// How many heads the nodes of keys and values have.
  int64_t n_shown_kv_heads() const { return repeats_kv ? n_heads : n_kv_heads; }
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
