// TransformerLens' own models: a HookedTransformerConfig as a dictionary, and weights by head as its state dicts have
// them (version 3.9.0).

#include <algorithm>
#include <cmath>

#include "glassformer/arch/config_reader.h"
#include "glassformer/arch/models/models.h"

namespace glassformer::models {
namespace {

[[noreturn]] void refuse(const ConfigReader& reader, const char* field, const std::string& found) {
  throw UnsupportedError(str(reader.path(), ": ", field, " ", found, " is not supported for models of this kind"));
}

// Each is off where the dictionary doesn't have it, has null, false, or the number that means "not set".
void refuse_what_is_not_there(const ConfigReader& reader) {
  for (const char* field : {"use_qk_norm", "use_logn_attn", "use_dynamic_ntk_rope", "post_embedding_ln",
                            "use_normalization_before_and_after", "use_attention_sinks", "final_rms", "load_in_4bit",
                            "yarn_global_attn_only"})
    if (reader.flag(field, false)) refuse(reader, field, "true");
  for (const char* field : {"clip_qkv", "num_experts", "rotary_base_local"})
    if (reader.has(field)) refuse(reader, field, str(reader.real(field)));
  if (reader.real("rotary_scaling_factor", 1) != 1) refuse(reader, "rotary_scaling_factor", "other than 1");
  if (const std::string direction = reader.text("attention_dir", "causal"); direction != "causal")
    refuse(reader, "attention_dir", direction);
}

void read_norm(const ConfigReader& reader, ModelConfig& config) {
  config.norm_eps = reader.real("eps", 1e-5);
  const std::string type = reader.mentions("normalization_type") && !reader.has("normalization_type")
                               ? "none"
                               : reader.text("normalization_type", "LN");
  if (type != "none" && type != "LN" && type != "LNPre" && type != "RMS" && type != "RMSPre")
    refuse(reader, "normalization_type", type);
  config.norm = type == "none" ? Norm::kNone : type.starts_with("RMS") ? Norm::kRmsNorm : Norm::kLayerNorm;
  config.norm_weights = !type.ends_with("Pre");
}

void read_positions(const ConfigReader& reader, ModelConfig& config) {
  const std::string type = reader.text("positional_embedding_type", "standard");
  if (type == "standard") {
    config.positions = PositionEmbedding::kLearned;
  } else if (type == "shortformer") {
    config.positions = PositionEmbedding::kShortformer;
  } else if (type == "alibi") {
    config.positions = PositionEmbedding::kAlibi;
  } else if (type == "rotary") {
    config.positions = PositionEmbedding::kRotary;
  } else {
    refuse(reader, "positional_embedding_type", type);
  }
  Rope& rope = config.rope;
  rope.dims = reader.integer("rotary_dim", config.d_head);
  rope.base = reader.real("rotary_base", 10000);
  rope.adjacent_pairs = reader.flag("rotary_adjacent_pairs", false);
  rope.n_ctx = rope.original_n_ctx = config.n_ctx;
  if (reader.flag("use_NTK_by_parts_rope", false)) {
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = reader.real("NTK_by_parts_factor", 8);
    rope.low_freq_factor = reader.real("NTK_by_parts_low_freq_factor", 1);
    rope.high_freq_factor = reader.real("NTK_by_parts_high_freq_factor", 4);
    rope.original_n_ctx = reader.integer("NTK_original_ctx_len", 8192);
  } else if (reader.flag("use_yarn_rope", false)) {
    rope.scaling = RopeScaling::kYarn;
    rope.factor = reader.real("yarn_factor", 1);
    rope.attention_factor = reader.real("yarn_attention_factor", 1);
    rope.beta_fast = reader.real("yarn_beta_fast", 32);
    rope.beta_slow = reader.real("yarn_beta_slow", 1);
    rope.original_n_ctx = reader.integer("yarn_original_max_position_embeddings", 4096);
    rope.truncate = reader.flag("yarn_truncate", true);
  }
}

void read_mlp(const ConfigReader& reader, ModelConfig& config) {
  config.attention_only = reader.flag("attn_only", false);
  config.d_mlp = reader.integer("d_mlp", 4 * config.d_model);
  if (config.attention_only) return;
  config.gated_mlp = config.bias_after_gate = reader.flag("gated_mlp", false);
  config.parallel = reader.flag("parallel_attn_mlp", false);
  std::string activation = reader.text("act_fn", "relu");
  config.mlp_norm = activation.ends_with("_ln");
  if (config.mlp_norm) activation.resize(activation.size() - 3);
  if (config.mlp_norm && config.gated_mlp) refuse(reader, "act_fn", activation + "_ln with gated_mlp");
  config.mlp_norm_weights = config.norm == Norm::kLayerNorm && config.norm_weights;
  config.activation = activation_named(activation, reader.path());
}

void read_layers(const ConfigReader& reader, ModelConfig& config) {
  const double given = reader.real("attn_scale", -1);
  const double divisor = !reader.flag("use_attn_scale", true) ? 1.0
                         : given == -1                        ? std::sqrt(static_cast<double>(config.d_head))
                                                              : given;
  const bool by_layer = reader.flag("scale_attn_by_inverse_layer_idx", false);
  const std::vector<std::string> types =
      reader.flag("use_local_attn", false) ? reader.texts("attn_types") : std::vector<std::string>();
  for (int64_t layer = 0; layer < config.n_layers && layer < kMostLayers; ++layer) {
    LayerConfig made{.attention_scale = 1 / (by_layer ? divisor * static_cast<double>(layer + 1) : divisor)};
    if (!types.empty()) {
      if (types.size() <= static_cast<size_t>(layer))
        throw FileError(reader.path(), str("attn_types has ", types.size(), " layers; expected ", config.n_layers));
      if (types[static_cast<size_t>(layer)] == "local") made.window = reader.integer("window_size");
    }
    config.layers.push_back(made);
  }
}

void read_config(const ConfigReader& reader, ModelConfig& config) {
  refuse_what_is_not_there(reader);
  config.n_layers = reader.integer("n_layers");
  config.d_model = reader.integer("d_model");
  config.d_head = reader.integer("d_head");
  config.n_heads = reader.integer("n_heads", -1);
  if (config.n_heads == -1 && config.d_head > 0) config.n_heads = config.d_model / config.d_head;
  config.n_kv_heads = reader.integer("n_key_value_heads", config.n_heads);
  config.d_vocab = reader.integer("d_vocab");
  config.d_vocab_out = std::max<int64_t>(0, reader.integer("d_vocab_out", 0));
  config.n_ctx = reader.integer("n_ctx");
  read_norm(reader, config);
  read_positions(reader, config);
  read_mlp(reader, config);
  config.biases = {.q = true, .k = true, .v = true, .o = true, .mlp_in = true, .mlp_out = true, .unembed = true};
  config.score_cap = std::max(0.0, reader.real("attn_scores_soft_cap", 0));
  config.logit_cap = std::max(0.0, reader.real("output_logits_soft_cap", 0));
  read_layers(reader, config);
}

}  // namespace

Architecture transformer_lens() {
  return {
      .model_types = {"transformer_lens"},
      .gguf_name = "",
      .gguf_keys = {},
      .read_config = read_config,
      .prefix = "",
      .weights = {{"embed.W_E", {"embed.weight"}},
                  {"pos_embed.W_pos", {"pos_embed.weight"}},
                  {"blocks.{}.ln1.w", {"blocks.{}.ln1.weight"}},
                  {"blocks.{}.ln1.b", {"blocks.{}.ln1.bias"}},
                  {"blocks.{}.attn.W_Q", {"blocks.{}.attn.q.weight"}, Layout::kColumnsByHead},
                  {"blocks.{}.attn.W_K", {"blocks.{}.attn.k.weight"}, Layout::kColumnsByHead},
                  {"blocks.{}.attn._W_K", {"blocks.{}.attn.k.weight"}, Layout::kColumnsByHead},
                  {"blocks.{}.attn.W_V", {"blocks.{}.attn.v.weight"}, Layout::kColumnsByHead},
                  {"blocks.{}.attn._W_V", {"blocks.{}.attn.v.weight"}, Layout::kColumnsByHead},
                  {"blocks.{}.attn.b_Q", {"blocks.{}.attn.q.bias"}, Layout::kByHead},
                  {"blocks.{}.attn.b_K", {"blocks.{}.attn.k.bias"}, Layout::kByHead},
                  {"blocks.{}.attn._b_K", {"blocks.{}.attn.k.bias"}, Layout::kByHead},
                  {"blocks.{}.attn.b_V", {"blocks.{}.attn.v.bias"}, Layout::kByHead},
                  {"blocks.{}.attn._b_V", {"blocks.{}.attn.v.bias"}, Layout::kByHead},
                  {"blocks.{}.attn.W_O", {"blocks.{}.attn.o.weight"}, Layout::kRowsByHead},
                  {"blocks.{}.attn.b_O", {"blocks.{}.attn.o.bias"}},
                  {"blocks.{}.ln2.w", {"blocks.{}.ln2.weight"}},
                  {"blocks.{}.ln2.b", {"blocks.{}.ln2.bias"}},
                  {"blocks.{}.mlp.W_gate", {"blocks.{}.mlp.gate.weight"}, Layout::kColumns},
                  {"blocks.{}.mlp.W_in", {"blocks.{}.mlp.in.weight"}, Layout::kColumns},
                  {"blocks.{}.mlp.b_in", {"blocks.{}.mlp.in.bias"}},
                  {"blocks.{}.mlp.ln.w", {"blocks.{}.mlp.ln.weight"}},
                  {"blocks.{}.mlp.ln.b", {"blocks.{}.mlp.ln.bias"}},
                  {"blocks.{}.mlp.W_out", {"blocks.{}.mlp.out.weight"}, Layout::kColumns},
                  {"blocks.{}.mlp.b_out", {"blocks.{}.mlp.out.bias"}},
                  {"ln_final.w", {"ln_final.weight"}},
                  {"ln_final.b", {"ln_final.bias"}},
                  {"unembed.W_U", {"unembed.weight"}, Layout::kColumns},
                  {"unembed.b_U", {"unembed.bias"}}},
      .gguf_weights = {},
  };
}

}  // namespace glassformer::models
