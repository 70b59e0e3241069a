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

bool is_one_of(const ConfigReader& reader, std::initializer_list<const char*> architectures) {
  const std::string given = reader.text("original_architecture", "");
  return std::any_of(architectures.begin(), architectures.end(), [&](const char* name) { return given == name; });
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
  config.final_rms = reader.flag("final_rms", false);
  config.embed_norm = reader.flag("post_embedding_ln", false);
  config.second_norms = reader.flag("use_normalization_before_and_after", false);
  if (config.second_norms && config.norm == Norm::kLayerNorm)
    refuse(reader, "use_normalization_before_and_after", "with normalization_type " + type);
  config.norms_after = is_one_of(reader, {"Olmo2ForCausalLM", "Olmo3ForCausalLM"});
  const bool whole = is_one_of(reader, {"OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM"});
  const bool by_head = reader.flag("use_qk_norm", false);
  if (whole && by_head)
    refuse(reader, "use_qk_norm", "with original_architecture " + reader.text("original_architecture"));
  config.qk_norm = by_head ? QkNorm::kByHead : whole ? QkNorm::kWhole : QkNorm::kNone;
}

// The length that the model was trained at: beyond it, queries and rotary angles change.
int64_t trained_length(const ConfigReader& reader, int64_t n_ctx) {
  const int64_t length = reader.integer("train_seq_length", n_ctx);
  if (length < 2) refuse(reader, "train_seq_length", std::to_string(length));
  return length;
}

// The scaling of `rope`, and how it is for local layers.
void read_rope_scaling(const ConfigReader& reader, Rope& rope, Rope& local) {
  const double linear = reader.real("rotary_scaling_factor", 1);
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
  } else if (linear != 1) {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = linear;
  }
  const bool everywhere = rope.scaling == RopeScaling::kLlama3 ||
                          (rope.scaling == RopeScaling::kYarn && !reader.flag("yarn_global_attn_only", false));
  if (everywhere) {
    const double base = local.base;
    local = rope;
    local.base = base;
  }
  if (!reader.flag("use_dynamic_ntk_rope", false)) return;
  if (rope.scaling != RopeScaling::kNone || rope.dims < 4)
    refuse(reader, "use_dynamic_ntk_rope", rope.dims < 4 ? "with rotary_dim 2" : "with another scaling");
  for (Rope* each : {&rope, &local}) {
    each->scaling = RopeScaling::kSteppedNtk;
    each->original_n_ctx = trained_length(reader, each->n_ctx);
  }
}

void read_positions(const ConfigReader& reader, ModelConfig& config) {
  const std::string type = reader.text("positional_embedding_type", "standard");
  if (type == "standard") {
    config.positions = PositionEmbedding::kLearned;
  } else if (type == "shortformer") {
    if (config.norms_after) refuse(reader, "positional_embedding_type", "shortformer without norms before attention");
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
  config.local_rope = rope;
  config.local_rope.base = reader.real("rotary_base_local", rope.base);
  if (config.positions == PositionEmbedding::kRotary) read_rope_scaling(reader, rope, config.local_rope);
}

void read_experts(const ConfigReader& reader, ModelConfig& config, std::string activation) {
  const bool gpt_oss = is_one_of(reader, {"GptOssForCausalLM"});
  config.gated_mlp = true;
  config.bias_after_gate = false;
  config.experts = {.count = reader.integer("num_experts"),
                    .per_token = reader.integer("experts_per_token"),
                    .norm_weights = !gpt_oss && reader.flag("norm_topk_prob", false),
                    .top_first = gpt_oss};
  if (gpt_oss) {
    config.activation = Activation::kClampedGlu;
    return;
  }
  if (activation == "xielu") refuse(reader, "act_fn", "xielu with num_experts");
  if (activation == "solu_ln") activation = "solu";  // The experts of TransformerLens have no norm of their own.
  config.activation = activation_named(activation, reader.path());
}

void read_mlp(const ConfigReader& reader, ModelConfig& config) {
  config.attention_only = reader.flag("attn_only", false);
  config.d_mlp = reader.integer("d_mlp", 4 * config.d_model);
  if (config.attention_only) return;
  config.gated_mlp = config.bias_after_gate = reader.flag("gated_mlp", false);
  config.parallel = reader.flag("parallel_attn_mlp", false);
  if (config.parallel && config.norms_after)
    refuse(reader, "parallel_attn_mlp", "with original_architecture " + reader.text("original_architecture"));
  std::string activation = reader.text("act_fn", "relu");
  if (reader.integer("num_experts", 0) > 0) {
    read_experts(reader, config, std::move(activation));
    return;
  }
  if (activation == "xielu") {
    config.activation = Activation::kXielu;
    return;
  }
  config.mlp_norm = activation.ends_with("_ln");
  if (config.mlp_norm) activation.resize(activation.size() - 3);
  if (config.mlp_norm) config.bias_after_gate = false;
  config.mlp_norm_weights = config.norm == Norm::kLayerNorm && config.norm_weights;
  config.activation = activation_named(activation, reader.path());
}

void read_layers(const ConfigReader& reader, ModelConfig& config) {
  const double given = reader.real("attn_scale", -1);
  const double divisor = !reader.flag("use_attn_scale", true) ? 1.0
                         : given == -1                        ? std::sqrt(static_cast<double>(config.d_head))
                                                              : given;
  if (!(divisor > 0)) refuse(reader, "attn_scale", str(divisor));
  const bool by_layer = reader.flag("scale_attn_by_inverse_layer_idx", false);
  const std::vector<std::string> types =
      reader.flag("use_local_attn", false) ? reader.texts("attn_types") : std::vector<std::string>();
  for (int64_t layer = 0; layer < config.n_layers && layer < kMostLayers; ++layer) {
    LayerConfig made{.attention_scale = 1 / (by_layer ? divisor * static_cast<double>(layer + 1) : divisor)};
    if (!types.empty()) {
      if (types.size() <= static_cast<size_t>(layer))
        throw FileError(reader.path(), str("attn_types has ", types.size(), " layers; expected ", config.n_layers));
      if (types[static_cast<size_t>(layer)] == "local") {
        made.window = reader.integer("window_size");
        made.local_rope = config.local_rope != config.rope;
      }
    }
    config.layers.push_back(made);
  }
}

void read_config(const ConfigReader& reader, ModelConfig& config) {
  if (reader.flag("load_in_4bit", false)) refuse(reader, "load_in_4bit", "true");
  config.n_layers = reader.integer("n_layers");
  config.d_model = reader.integer("d_model");
  config.d_head = reader.integer("d_head");
  config.n_heads = reader.integer("n_heads", -1);
  if (config.n_heads == -1 && config.d_head > 0) config.n_heads = config.d_model / config.d_head;
  config.n_kv_heads = reader.integer("n_key_value_heads", config.n_heads);
  config.repeats_kv = reader.flag("ungroup_grouped_query_attention", false) && config.grouped_query();
  config.d_vocab = reader.integer("d_vocab");
  config.d_vocab_out = std::max<int64_t>(0, reader.integer("d_vocab_out", 0));
  config.n_ctx = reader.integer("n_ctx");
  read_norm(reader, config);
  read_positions(reader, config);
  read_mlp(reader, config);
  config.biases = {.q = true,
                   .k = true,
                   .v = true,
                   .o = true,
                   .mlp_in = true,
                   .mlp_out = true,
                   .experts = config.experts.top_first,
                   .unembed = true};
  const std::string direction = reader.text("attention_dir", "causal");
  if (direction != "causal" && direction != "bidirectional") refuse(reader, "attention_dir", direction);
  config.bidirectional = direction == "bidirectional";
  config.attention_sinks = reader.flag("use_attention_sinks", false);
  config.qkv_clip = reader.real("clip_qkv", 0);
  if (reader.flag("use_logn_attn", false)) config.log_n_length = trained_length(reader, config.n_ctx);
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
                  {"embed.ln.w", {"embed.ln.weight"}},
                  {"embed.ln.b", {"embed.ln.bias"}},
                  {"pos_embed.W_pos", {"pos_embed.weight"}},
                  {"blocks.{}.ln1.w", {"blocks.{}.ln1.weight"}},
                  {"blocks.{}.ln1.b", {"blocks.{}.ln1.bias"}},
                  {"blocks.{}.ln1_post.w", {"blocks.{}.ln1_post.weight"}},
                  {"blocks.{}.ln2_post.w", {"blocks.{}.ln2_post.weight"}},
                  {"blocks.{}.attn.q_norm.w", {"blocks.{}.attn.q_norm.weight"}},
                  {"blocks.{}.attn.k_norm.w", {"blocks.{}.attn.k_norm.weight"}},
                  {"blocks.{}.attn.sinks", {"blocks.{}.attn.sinks"}},
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
                  {"blocks.{}.mlp.act_fn.alpha_p", {"blocks.{}.mlp.act.alpha_p"}, Layout::kScalar},
                  {"blocks.{}.mlp.act_fn.alpha_n", {"blocks.{}.mlp.act.alpha_n"}, Layout::kScalar},
                  {"blocks.{}.mlp.W_gate.weight", {"blocks.{}.mlp.router.weight"}},
                  {"blocks.{}.mlp.W_gate.bias", {"blocks.{}.mlp.router.bias"}},
                  {"blocks.{}.mlp.experts.{}.W_gate.weight", {"blocks.{}.mlp.experts.{}.gate.weight"}},
                  {"blocks.{}.mlp.experts.{}.W_gate.bias", {"blocks.{}.mlp.experts.{}.gate.bias"}},
                  {"blocks.{}.mlp.experts.{}.W_in.weight", {"blocks.{}.mlp.experts.{}.in.weight"}},
                  {"blocks.{}.mlp.experts.{}.W_in.bias", {"blocks.{}.mlp.experts.{}.in.bias"}},
                  {"blocks.{}.mlp.experts.{}.W_out.weight", {"blocks.{}.mlp.experts.{}.out.weight"}},
                  {"blocks.{}.mlp.experts.{}.W_out.bias", {"blocks.{}.mlp.experts.{}.out.bias"}},
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
