// GPT-2: learned positions, LayerNorm before each part, fused q, k and v in Conv1D (inputs first), tied embeddings.

#include <cmath>

#include "glassformer/arch/config_reader.h"
#include "glassformer/arch/models/models.h"

namespace glassformer::models {
namespace {

void read_config(const ConfigReader& reader, ModelConfig& config) {
  if (reader.flag("add_cross_attention", false))
    throw UnsupportedError(reader.path() + ": GPT-2 with cross attention is not supported; supported: decoder only");
  config.n_layers = reader.integer("n_layer", 12);
  config.d_model = reader.integer("n_embd", 768);
  config.n_heads = config.n_kv_heads = reader.integer("n_head", 12);
  if (config.n_heads <= 0 || config.d_model % config.n_heads != 0)
    throw FileError(reader.path(), str("n_embd ", config.d_model, " is not a multiple of n_head ", config.n_heads));
  config.d_head = config.d_model / config.n_heads;
  config.d_mlp = reader.integer("n_inner", 4 * config.d_model);
  config.d_vocab = reader.integer("vocab_size", 50257);
  config.n_ctx = reader.integer("n_positions", reader.integer("n_ctx", 1024));
  config.norm = Norm::kLayerNorm;
  config.norm_eps = reader.real("layer_norm_epsilon", 1e-5);
  config.positions = PositionEmbedding::kLearned;
  config.reference = {.activation = reader.text("activation_function", "gelu_new"),
                      .embed_dropout = reader.real("embd_pdrop", 0.1),
                      .pattern_dropout = reader.real("attn_pdrop", 0.1),
                      .out_dropout = reader.real("resid_pdrop", 0.1)};
  config.activation = activation_named(config.reference.activation, reader.path());
  config.tied_unembed = reader.flag("tie_word_embeddings", true);
  config.upcast_attention = reader.flag("reorder_and_upcast_attn", false);
  config.biases = {.q = true, .k = true, .v = true, .o = true, .mlp_in = true, .mlp_out = true};
  const bool scaled = reader.flag("scale_attn_weights", true);
  const bool by_layer = reader.flag("scale_attn_by_inverse_layer_idx", false);
  for (int64_t layer = 0; layer < config.n_layers && layer < kMostLayers; ++layer) {
    const double scale = scaled ? 1.0 / std::sqrt(static_cast<double>(config.d_head)) : 1.0;
    config.layers.push_back({.attention_scale = by_layer ? scale / static_cast<double>(layer + 1) : scale});
  }
}

}  // namespace

Architecture gpt2() {
  using enum ModulePart;
  constexpr Layout kConv1D = Layout::kColumns;
  return {
      .model_types = {"gpt2"},
      .gguf_name = "gpt2",
      .gguf_keys = {{"context_length", "n_positions"},
                    {"embedding_length", "n_embd"},
                    {"feed_forward_length", "n_inner"},
                    {"block_count", "n_layer"},
                    {"attention.head_count", "n_head"},
                    {"attention.layer_norm_epsilon", "layer_norm_epsilon"}},
      .read_config = read_config,
      .prefix = "transformer.",
      .weights = {{"wte.weight", {"embed.weight"}},
                  {"wpe.weight", {"pos_embed.weight"}},
                  {"h.{}.ln_1.weight", {"blocks.{}.ln1.weight"}},
                  {"h.{}.ln_1.bias", {"blocks.{}.ln1.bias"}},
                  {"h.{}.attn.c_attn.weight",
                   {"blocks.{}.attn.q.weight", "blocks.{}.attn.k.weight", "blocks.{}.attn.v.weight"},
                   kConv1D},
                  {"h.{}.attn.c_attn.bias",
                   {"blocks.{}.attn.q.bias", "blocks.{}.attn.k.bias", "blocks.{}.attn.v.bias"}},
                  {"h.{}.attn.c_proj.weight", {"blocks.{}.attn.o.weight"}, kConv1D},
                  {"h.{}.attn.c_proj.bias", {"blocks.{}.attn.o.bias"}},
                  {"h.{}.ln_2.weight", {"blocks.{}.ln2.weight"}},
                  {"h.{}.ln_2.bias", {"blocks.{}.ln2.bias"}},
                  {"h.{}.mlp.c_fc.weight", {"blocks.{}.mlp.in.weight"}, kConv1D},
                  {"h.{}.mlp.c_fc.bias", {"blocks.{}.mlp.in.bias"}},
                  {"h.{}.mlp.c_proj.weight", {"blocks.{}.mlp.out.weight"}, kConv1D},
                  {"h.{}.mlp.c_proj.bias", {"blocks.{}.mlp.out.bias"}},
                  {"ln_f.weight", {"ln_final.weight"}},
                  {"ln_f.bias", {"ln_final.bias"}},
                  {"lm_head.weight", {"unembed.weight"}}},
      .gguf_weights = {{"token_embd.weight", {"embed.weight"}},
                       {"position_embd.weight", {"pos_embed.weight"}},
                       {"blk.{}.attn_norm.weight", {"blocks.{}.ln1.weight"}},
                       {"blk.{}.attn_norm.bias", {"blocks.{}.ln1.bias"}},
                       {"blk.{}.attn_qkv.weight",
                        {"blocks.{}.attn.q.weight", "blocks.{}.attn.k.weight", "blocks.{}.attn.v.weight"}},
                       {"blk.{}.attn_qkv.bias",
                        {"blocks.{}.attn.q.bias", "blocks.{}.attn.k.bias", "blocks.{}.attn.v.bias"}},
                       {"blk.{}.attn_output.weight", {"blocks.{}.attn.o.weight"}},
                       {"blk.{}.attn_output.bias", {"blocks.{}.attn.o.bias"}},
                       {"blk.{}.ffn_norm.weight", {"blocks.{}.ln2.weight"}},
                       {"blk.{}.ffn_norm.bias", {"blocks.{}.ln2.bias"}},
                       {"blk.{}.ffn_up.weight", {"blocks.{}.mlp.in.weight"}},
                       {"blk.{}.ffn_up.bias", {"blocks.{}.mlp.in.bias"}},
                       {"blk.{}.ffn_down.weight", {"blocks.{}.mlp.out.weight"}},
                       {"blk.{}.ffn_down.bias", {"blocks.{}.mlp.out.bias"}},
                       {"output_norm.weight", {"ln_final.weight"}},
                       {"output_norm.bias", {"ln_final.bias"}},
                       {"output.weight", {"unembed.weight"}}},
      .class_prefixes = {"GPT2"},
      .modules = {{"", "*LMHeadModel", kModel},
                  {"transformer", "*Model", kDecoder},
                  {"transformer.wte", "Embedding", kEmbed},
                  {"transformer.wpe", "Embedding", kPosEmbed},
                  {"transformer.drop", "Dropout", kEmbedDropout},
                  {"transformer.h", "ModuleList", kBlocks},
                  {"transformer.h.{}", "*Block", kBlock},
                  {"transformer.h.{}.ln_1", "LayerNorm", kAttnNorm},
                  {"transformer.h.{}.attn", "*Attention", kAttention},
                  {"transformer.h.{}.attn.c_attn", "Conv1D", kQkv},
                  {"transformer.h.{}.attn.c_proj", "Conv1D", kO},
                  {"transformer.h.{}.attn.attn_dropout", "Dropout", kAttnDropout},
                  {"transformer.h.{}.attn.resid_dropout", "Dropout", kAttnOutDropout},
                  {"transformer.h.{}.ln_2", "LayerNorm", kMlpNorm},
                  {"transformer.h.{}.mlp", "*MLP", kMlp},
                  {"transformer.h.{}.mlp.c_fc", "Conv1D", kMlpIn},
                  {"transformer.h.{}.mlp.c_proj", "Conv1D", kMlpOut},
                  {"transformer.h.{}.mlp.act", "", kActivation},
                  {"transformer.h.{}.mlp.dropout", "Dropout", kMlpDropout},
                  {"transformer.ln_f", "LayerNorm", kFinalNorm},
                  {"lm_head", "Linear", kUnembed}},
  };
}

}  // namespace glassformer::models
