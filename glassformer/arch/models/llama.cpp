// Llama 1 to 3.3, SmolLM2, Mistral and their kin: rotary positions, RMS norm before each part, grouped-query attention,
// a gated MLP.

#include <algorithm>
#include <cmath>

#include "glassformer/arch/config_reader.h"
#include "glassformer/arch/models/models.h"

namespace glassformer::models {
namespace {

// Mistral alone has a window: 4096 keys unless its config says otherwise (null: none).
int64_t window(const ConfigReader& reader, bool mistral) {
  if (!mistral) return 0;
  return reader.integer("sliding_window", reader.mentions("sliding_window") ? 0 : 4096);
}

void read_config(const ConfigReader& reader, ModelConfig& config) {
  config.n_layers = reader.integer("num_hidden_layers");
  config.d_model = reader.integer("hidden_size");
  config.n_heads = reader.integer("num_attention_heads");
  const bool mistral = reader.text("model_type", "") == "mistral";
  config.n_kv_heads = reader.integer("num_key_value_heads", mistral ? 8 : config.n_heads);
  if (config.n_heads <= 0) throw FileError(reader.path(), str("num_attention_heads is ", config.n_heads));
  config.d_head = reader.integer("head_dim", config.d_model / config.n_heads);
  config.d_mlp = reader.integer("intermediate_size");
  config.d_vocab = reader.integer("vocab_size");
  config.n_ctx = reader.integer("max_position_embeddings", mistral ? 131072 : 2048);
  config.norm = Norm::kRmsNorm;
  config.norm_eps = reader.real("rms_norm_eps", 1e-6);
  config.positions = PositionEmbedding::kRotary;
  config.rope = read_rope(reader, config.d_head, config.n_ctx);
  config.rope.dims = reader.integer("rotary_dims", config.rope.dims);
  // Dynamic scaling is there to go beyond the context.
  if (config.rope.scaling == RopeScaling::kDynamic)
    config.n_ctx = static_cast<int64_t>(static_cast<double>(config.n_ctx) * std::max(1.0, config.rope.factor));
  config.reference.activation = reader.text("hidden_act", "silu");
  if (reader.has("pad_token_id")) config.reference.padding = reader.integer("pad_token_id");
  config.activation = activation_named(config.reference.activation, reader.path());
  config.gated_mlp = true;
  config.tied_unembed = reader.flag("tie_word_embeddings", false);
  const bool attention = reader.flag("attention_bias", false), mlp = reader.flag("mlp_bias", false);
  config.biases = {
      .q = attention, .k = attention, .v = attention, .o = attention, .mlp_in = mlp, .mlp_gate = mlp, .mlp_out = mlp};
  const LayerConfig layer{.attention_scale = 1.0 / std::sqrt(static_cast<double>(config.d_head)),
                          .window = window(reader, mistral)};
  config.layers.assign(static_cast<size_t>(std::clamp<int64_t>(config.n_layers, 0, kMostLayers)), layer);
}

}  // namespace

Architecture llama() {
  using enum ModulePart;
  return {
      .model_types = {"llama", "mistral"},
      .gguf_name = "llama",
      .gguf_keys = {{"context_length", "max_position_embeddings"},
                    {"embedding_length", "hidden_size"},
                    {"feed_forward_length", "intermediate_size"},
                    {"block_count", "num_hidden_layers"},
                    {"attention.head_count", "num_attention_heads"},
                    {"attention.head_count_kv", "num_key_value_heads"},
                    {"attention.key_length", "head_dim"},
                    {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
                    {"rope.freq_base", "rope_theta"},
                    {"rope.dimension_count", "rotary_dims"},
                    {"rope.scaling.type", "rope_scaling/rope_type"},
                    {"rope.scaling.factor", "rope_scaling/factor"},
                    {"rope.scaling.original_context_length", "rope_scaling/original_max_position_embeddings"}},
      .read_config = read_config,
      .prefix = "model.",
      .weights = {{"embed_tokens.weight", {"embed.weight"}},
                  {"layers.{}.input_layernorm.weight", {"blocks.{}.ln1.weight"}},
                  {"layers.{}.self_attn.q_proj.weight", {"blocks.{}.attn.q.weight"}},
                  {"layers.{}.self_attn.q_proj.bias", {"blocks.{}.attn.q.bias"}},
                  {"layers.{}.self_attn.k_proj.weight", {"blocks.{}.attn.k.weight"}},
                  {"layers.{}.self_attn.k_proj.bias", {"blocks.{}.attn.k.bias"}},
                  {"layers.{}.self_attn.v_proj.weight", {"blocks.{}.attn.v.weight"}},
                  {"layers.{}.self_attn.v_proj.bias", {"blocks.{}.attn.v.bias"}},
                  {"layers.{}.self_attn.o_proj.weight", {"blocks.{}.attn.o.weight"}},
                  {"layers.{}.self_attn.o_proj.bias", {"blocks.{}.attn.o.bias"}},
                  {"layers.{}.post_attention_layernorm.weight", {"blocks.{}.ln2.weight"}},
                  {"layers.{}.mlp.gate_proj.weight", {"blocks.{}.mlp.gate.weight"}},
                  {"layers.{}.mlp.gate_proj.bias", {"blocks.{}.mlp.gate.bias"}},
                  {"layers.{}.mlp.up_proj.weight", {"blocks.{}.mlp.in.weight"}},
                  {"layers.{}.mlp.up_proj.bias", {"blocks.{}.mlp.in.bias"}},
                  {"layers.{}.mlp.down_proj.weight", {"blocks.{}.mlp.out.weight"}},
                  {"layers.{}.mlp.down_proj.bias", {"blocks.{}.mlp.out.bias"}},
                  {"norm.weight", {"ln_final.weight"}},
                  {"lm_head.weight", {"unembed.weight"}}},
      .gguf_weights = {{"token_embd.weight", {"embed.weight"}},
                       {"blk.{}.attn_norm.weight", {"blocks.{}.ln1.weight"}},
                       {"blk.{}.attn_q.weight", {"blocks.{}.attn.q.weight"}, Layout::kRotaryPairs},
                       {"blk.{}.attn_k.weight", {"blocks.{}.attn.k.weight"}, Layout::kRotaryPairs},
                       {"blk.{}.attn_q.bias", {"blocks.{}.attn.q.bias"}, Layout::kRotaryPairs},
                       {"blk.{}.attn_k.bias", {"blocks.{}.attn.k.bias"}, Layout::kRotaryPairs},
                       {"blk.{}.attn_v.weight", {"blocks.{}.attn.v.weight"}},
                       {"blk.{}.attn_v.bias", {"blocks.{}.attn.v.bias"}},
                       {"blk.{}.attn_output.weight", {"blocks.{}.attn.o.weight"}},
                       {"blk.{}.attn_output.bias", {"blocks.{}.attn.o.bias"}},
                       {"blk.{}.ffn_norm.weight", {"blocks.{}.ln2.weight"}},
                       {"blk.{}.ffn_gate.weight", {"blocks.{}.mlp.gate.weight"}},
                       {"blk.{}.ffn_gate.bias", {"blocks.{}.mlp.gate.bias"}},
                       {"blk.{}.ffn_up.weight", {"blocks.{}.mlp.in.weight"}},
                       {"blk.{}.ffn_up.bias", {"blocks.{}.mlp.in.bias"}},
                       {"blk.{}.ffn_down.weight", {"blocks.{}.mlp.out.weight"}},
                       {"blk.{}.ffn_down.bias", {"blocks.{}.mlp.out.bias"}},
                       {"output_norm.weight", {"ln_final.weight"}},
                       {"output.weight", {"unembed.weight"}}},
      .class_prefixes = {"Llama", "Mistral"},
      .modules = {{"", "*ForCausalLM", kModel},
                  {"model", "*Model", kDecoder},
                  {"model.embed_tokens", "Embedding", kEmbed},
                  {"model.layers", "ModuleList", kBlocks},
                  {"model.layers.{}", "*DecoderLayer", kBlock},
                  {"model.layers.{}.self_attn", "*Attention", kAttention},
                  {"model.layers.{}.self_attn.q_proj", "Linear", kQ},
                  {"model.layers.{}.self_attn.k_proj", "Linear", kK},
                  {"model.layers.{}.self_attn.v_proj", "Linear", kV},
                  {"model.layers.{}.self_attn.o_proj", "Linear", kO},
                  {"model.layers.{}.mlp", "*MLP", kMlp},
                  {"model.layers.{}.mlp.gate_proj", "Linear", kMlpGate},
                  {"model.layers.{}.mlp.up_proj", "Linear", kMlpIn},
                  {"model.layers.{}.mlp.down_proj", "Linear", kMlpOut},
                  {"model.layers.{}.mlp.act_fn", "", kActivation},
                  {"model.layers.{}.input_layernorm", "*RMSNorm", kAttnNorm},
                  {"model.layers.{}.post_attention_layernorm", "*RMSNorm", kMlpNorm},
                  {"model.norm", "*RMSNorm", kFinalNorm},
                  {"model.rotary_emb", "*RotaryEmbedding", kRotary},
                  {"lm_head", "Linear", kUnembed}},
  };
}

}  // namespace glassformer::models
