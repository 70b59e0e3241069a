#include "glassformer/arch/architecture.h"

#include <algorithm>

#include "glassformer/arch/config_reader.h"
#include "glassformer/arch/models/models.h"
#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/io/quantised.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer {
namespace {

std::string supported_types() {
  std::string names;
  for (const Architecture& architecture : architectures())
    for (const std::string& type : architecture.model_types) names += (names.empty() ? "" : ", ") + type;
  return names;
}

nlohmann::json to_json_value(const GgufValue& value) {
  return std::visit([](const auto& v) { return nlohmann::json(v); }, value);
}

const StoredTensor* find_tensor(const GgufFile& file, std::string_view name) {
  const auto found =
      std::find_if(file.tensors.begin(), file.tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
  return found == file.tensors.end() ? nullptr : &*found;
}

// Renames the metadata of a GGUF file to the keys of config.json, so that one reader serves both.
nlohmann::json config_from_gguf(const Architecture& architecture, const GgufFile& file) {
  nlohmann::json config = {{"model_type", architecture.model_types.front()}};
  for (const GgufKey& key : architecture.gguf_keys) {
    const auto found = file.metadata.find(architecture.gguf_name + "." + key.gguf);
    if (found != file.metadata.end())
      config[nlohmann::json::json_pointer("/" + key.config)] = to_json_value(found->second);
  }
  const auto padding = file.metadata.find("tokenizer.ggml.padding_token_id");
  if (padding != file.metadata.end()) config["pad_token_id"] = to_json_value(padding->second);
  const auto tokens = file.metadata.find("tokenizer.ggml.tokens");
  const StoredTensor* embed = find_tensor(file, "token_embd.weight");
  if (embed != nullptr && !embed->shape.empty())
    config["vocab_size"] = embed->shape[0];
  else if (tokens != file.metadata.end() && std::holds_alternative<std::vector<std::string>>(tokens->second))
    config["vocab_size"] = std::get<std::vector<std::string>>(tokens->second).size();
  config["tie_word_embeddings"] = find_tensor(file, "output.weight") == nullptr;
  return config;
}

DescribedModel describe(const ConfigReader& reader) {
  DescribedModel described;
  const std::string type = reader.text("model_type");
  described.architecture = &find_architecture(type, reader.path());
  described.config.architecture = type;
  described.architecture->read_config(reader, described.config);
  if (described.config.d_vocab_out == 0) described.config.d_vocab_out = described.config.d_vocab;
  check_config(described.config, reader.path());
  return described;
}

// llama.cpp stores the scaling of Llama 3.1 and later as one divisor for each rotary frequency.
void read_divisors(const GgufFile& file, Rope& rope) {
  const StoredTensor* tensor = find_tensor(file, "rope_freqs.weight");
  if (tensor == nullptr) return;
  if (tensor->dtype != DType::kFloat32 || tensor->count() != rope.dims / 2)
    throw FileError(file.path(), str("tensor 'rope_freqs.weight' has ", tensor->count(), " values of type ",
                                     layout(tensor->dtype).name, "; expected ", rope.dims / 2, " of type F32"));
  std::vector<float> values(static_cast<size_t>(tensor->count()));
  dequantise(tensor->dtype, tensor->data, tensor->count(), values.data());
  rope.divisors.assign(values.begin(), values.end());
}

// A GGUF file says by its tensors alone which biases there are.
void find_biases(const GgufFile& file, ModelConfig& config) {
  const auto has = [&](const char* part) { return find_tensor(file, str("blk.0.", part, ".bias")) != nullptr; };
  Biases& biases = config.biases;
  biases.q = biases.q || has("attn_q");
  biases.k = biases.k || has("attn_k");
  biases.v = biases.v || has("attn_v");
  biases.o = biases.o || has("attn_output");
  biases.mlp_gate = biases.mlp_gate || has("ffn_gate");
  biases.mlp_in = biases.mlp_in || has("ffn_up");
  biases.mlp_out = biases.mlp_out || has("ffn_down");
}

}  // namespace

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> list = {models::gpt2(), models::llama(), models::transformer_lens()};
  return list;
}

const Architecture& find_architecture(const std::string& model_type, const std::string& path) {
  for (const Architecture& architecture : architectures())
    if (std::count(architecture.model_types.begin(), architecture.model_types.end(), model_type) > 0)
      return architecture;
  throw UnsupportedError(
      str(path, ": architecture '", model_type, "' is not supported; supported: ", supported_types()));
}

DescribedModel describe(const std::string& config_json, const std::string& path) {
  return describe(ConfigReader(config_json, path));
}

DescribedModel describe(const ModelFiles& files) {
  if (!files.gguf) return describe(files.config_json, files.path + "/config.json");
  const std::string& name = files.gguf->at<std::string>("general.architecture");
  for (const Architecture& architecture : architectures())
    if (architecture.gguf_name == name) {
      DescribedModel described = describe(ConfigReader(config_from_gguf(architecture, *files.gguf), files.path));
      read_divisors(*files.gguf, described.config.rope);
      find_biases(*files.gguf, described.config);
      return described;
    }
  throw UnsupportedError(
      str(files.path, ": architecture '", name, "' is not supported; supported: ", supported_types()));
}

std::vector<int64_t> end_tokens(const std::string& config_json) {
  const nlohmann::json config = nlohmann::json::parse(config_json, nullptr, false);
  if (!config.is_object() || !config.contains("eos_token_id")) return {};
  const nlohmann::json& given = config["eos_token_id"];
  std::vector<int64_t> ids;
  for (const nlohmann::json& id : given.is_array() ? given : nlohmann::json::array({given}))
    if (id.is_number_integer()) ids.push_back(id.get<int64_t>());
  return ids;
}

std::shared_ptr<const Tokenizer> find_tokenizer(const ModelFiles& files) {
  if (files.gguf)
    return files.gguf->metadata.contains("tokenizer.ggml.model") ? Tokenizer::from_gguf(*files.gguf) : nullptr;
  if (files.tokenizer_json.empty()) return nullptr;
  return Tokenizer::from_json(files.tokenizer_json, files.path + "/tokenizer.json", files.tokenizer_config_json,
                              files.chat_template);
}

std::vector<int64_t> end_tokens(const ModelFiles& files) {
  std::vector<int64_t> ids = end_tokens(files.generation_config_json);
  return ids.empty() ? end_tokens(files.config_json) : ids;
}

}  // namespace glassformer
