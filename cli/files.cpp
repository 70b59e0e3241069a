#include "cli/files.h"

#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer::cli {

std::shared_ptr<const Tokenizer> tokenizer_of(const ModelFiles& files) {
  if (files.gguf) {
    return files.gguf->metadata.contains("tokenizer.ggml.model") ? Tokenizer::from_gguf(*files.gguf) : nullptr;
  }
  if (files.tokenizer_json.empty()) return nullptr;
  return Tokenizer::from_json(files.tokenizer_json, files.path + "/tokenizer.json", files.tokenizer_config_json);
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name_or_path) {
  const ModelFiles files = open_model(name_or_path, false);
  auto tokenizer = tokenizer_of(files);
  if (!tokenizer) throw InputError(files.path + ": the model came without a tokenizer");
  return tokenizer;
}

}  // namespace glassformer::cli
