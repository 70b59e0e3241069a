#pragma once
// The list of architectures: how each one's config and tensor names map onto the universal block.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/arch/config.h"
#include "glassformer/arch/module_map.h"
#include "glassformer/arch/weight_map.h"

namespace glassformer {

class ConfigReader;
class Tokenizer;
struct ModelFiles;

/// A key of GGUF's metadata ("{arch}.block_count" is written "block_count") and the key of config.json that means the
/// same.
struct GgufKey {
  std::string gguf;
  std::string config;
};

struct Architecture {
  std::vector<std::string> model_types;  // transformers' names; the first is the architecture's own.
  std::string gguf_name;                 // general.architecture in GGUF, or empty.
  std::vector<GgufKey> gguf_keys;
  void (*read_config)(const ConfigReader& reader, ModelConfig& config) = nullptr;
  std::string prefix;                            // May stand before each tensor's name in a file, or be missing.
  std::vector<WeightRule> weights;               // Names in safetensors (and in live transformers models).
  std::vector<WeightRule> gguf_weights;          // Names in GGUF.
  std::vector<std::string> class_prefixes = {};  // Of each model_type: what `*` stands for in the modules' class names.
  std::vector<ModuleRule> modules = {};          // In the order of `named_modules()`; none where there is no reference.
};

/// Every architecture that Glassformer has, one function each in arch/models/.
const std::vector<Architecture>& architectures();

/// The architecture of a `model_type`; `UnsupportedError` with the list of those that there are.
const Architecture& find_architecture(const std::string& model_type, const std::string& path);

/// The config that config.json's text or a GGUF file's metadata describes, and the architecture.
/// Raises `FileError` (path, key, found, expected) and `UnsupportedError`.
struct DescribedModel {
  const Architecture* architecture = nullptr;
  ModelConfig config;
};
DescribedModel describe(const std::string& config_json, const std::string& path);
DescribedModel describe(const ModelFiles& files);

/// The tokenizer that lies with a model; null where there is none.
std::shared_ptr<const Tokenizer> find_tokenizer(const ModelFiles& files);

/// The tokens that end a text: `eos_token_id` of generation_config.json, else of config.json; empty where neither has
/// one.
std::vector<int64_t> end_tokens(const ModelFiles& files);
std::vector<int64_t> end_tokens(const std::string& config_json);

}  // namespace glassformer
