#pragma once
// Which modules the reference implementation of an architecture has, and what each is in the universal block.

#include <string>
#include <vector>

namespace glassformer {

/// What a module is in the universal block.
enum class ModulePart {
  kModel,
  kDecoder,
  kEmbed,
  kPosEmbed,
  kEmbedDropout,  // Of the sum of embeddings.
  kRotary,
  kBlocks,  // The list of blocks.
  kBlock,
  kAttnNorm,
  kAttention,
  kQ,
  kK,
  kV,
  kQkv,  // Queries, keys and values side by side.
  kO,
  kAttnDropout,     // Of the pattern.
  kAttnOutDropout,  // Of what attention gives.
  kMlpNorm,
  kMlp,
  kMlpIn,
  kMlpGate,
  kActivation,
  kMlpOut,
  kMlpDropout,  // Of what the MLP gives.
  kFinalNorm,
  kUnembed,
};

/// One module. In `path`, `{}` stands for the layer's number. In `class_name`, `*` stands for what the classes of a
/// model_type begin with (`Architecture::class_prefixes`); an activation's class is the config's, and empty here.
struct ModuleRule {
  std::string path;
  std::string class_name;
  ModulePart part;
};

/// "attn_out_dropout"
const char* name_of(ModulePart part);

/// The class that transformers takes for an activation function by its name in config files ("gelu_new"); empty for
/// names of others.
std::string activation_class(const std::string& name);

}  // namespace glassformer
