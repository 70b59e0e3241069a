#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "glassformer/io/gguf.h"
#include "glassformer/io/stored_tensor.h"

namespace glassformer {

/// Everything that a model has on disk: a folder as Hugging Face lays it out, or one GGUF file.
struct ModelFiles {
  std::string path;                                          // The folder or the file, as resolved.
  std::map<std::string, StoredTensor, std::less<>> tensors;  // By the names in the files.
  std::shared_ptr<GgufFile> gguf;      // Set when the model is a GGUF file; then the texts below are empty.
  std::string config_json;             // config.json
  std::string tokenizer_json;          // tokenizer.json, or empty
  std::string tokenizer_config_json;   // tokenizer_config.json, or empty
  std::string generation_config_json;  // generation_config.json, or empty
  std::string chat_template;           // chat_template.jinja, or empty

  /// The tensor called `name`; `NameError` with the nearest names.
  const StoredTensor& tensor(std::string_view name) const;
};

/// Opens a model: a folder with config.json and safetensors (one file, or sharded with an index), a GGUF file, or the
/// name of a model ("org/name", or "name") that is already in the local Hugging Face cache (HF_HUB_CACHE, HF_HOME or
/// ~/.cache/huggingface/hub). Never downloads. Raises `FileError` saying what was looked for, and where.
/// A folder whose weights are a pickle (pytorch_model.bin) raises `UnsupportedError`: code in a model file is never
/// run.
ModelFiles open_model(const std::string& name_or_path, bool with_tensors = true);

}  // namespace glassformer
