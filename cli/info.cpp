#include <filesystem>
#include <map>
#include <set>

#include "cli/arguments.h"
#include "cli/files.h"
#include "cli/output.h"
#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

struct Facts {
  ModelFiles files;
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string no_tokenizer;  // Why there is none.
  int64_t n_parameters = 0;
  size_t bytes = 0;                       // Of all files with weights.
  std::map<std::string, int64_t> dtypes;  // How many tensors are stored in each.
};

int64_t count_parameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const WeightSpec& spec : weight_specs(config)) {
    if (config.tied_unembed && spec.name == "unembed.weight") continue;
    int64_t count = 1;
    for (const int64_t size : spec.shape) count *= size;
    total += count;
  }
  return total;
}

Facts look(const std::string& model) {
  Facts facts{open_model(model), {}, nullptr, "the model came without one", 0, 0, {}};
  facts.config = describe(facts.files).config;
  facts.n_parameters = count_parameters(facts.config);
  std::set<const MappedFile*> files;
  for (const auto& [name, tensor] : facts.files.tensors) {
    ++facts.dtypes[std::string(layout(tensor.dtype).name)];
    if (files.insert(tensor.file.get()).second) facts.bytes += tensor.file->bytes().size();
  }
  try {
    facts.tokenizer = find_tokenizer(facts.files);
  } catch (const UnsupportedError& error) {
    facts.no_tokenizer = error.what();
  }
  return facts;
}

// "BPE", "Unigram", "WordPiece"; of a GGUF file what it calls it.
std::string tokenizer_kind(const ModelFiles& files) {
  if (files.gguf) {
    const auto kind = files.gguf->get<std::string>("tokenizer.ggml.model", "");
    const auto variant = files.gguf->get<std::string>("tokenizer.ggml.pre", "");
    return kind == "gpt2" ? "byte-level BPE" + (variant.empty() ? "" : " (" + variant + ")") : kind;
  }
  const Json json = Json::parse(files.tokenizer_json, nullptr, false);
  return json.is_object() && json.contains("model") && json["model"].is_object() ? json["model"].value("type", "BPE")
                                                                                 : "";
}

Json special_token(const Facts& facts, std::optional<int64_t> id) {
  if (!id) return nullptr;
  return {{"id", *id}, {"token", facts.tokenizer->token(*id)}};
}

Json rope_json(const ModelConfig& config) {
  if (config.positions != PositionEmbedding::kRotary) return nullptr;
  const Rope& rope = config.rope;
  return {{"base", rope.base}, {"dims", rope.dims}, {"scaling", name_of(rope.scaling)}, {"factor", rope.factor}};
}

Json tokenizer_json(const Facts& facts) {
  if (!facts.tokenizer) return nullptr;
  return {{"kind", tokenizer_kind(facts.files)},
          {"vocabulary", facts.tokenizer->vocabulary_size()},
          {"bos", special_token(facts, facts.tokenizer->bos_id())},
          {"eos", special_token(facts, facts.tokenizer->eos_id())},
          {"pad", special_token(facts, facts.tokenizer->pad_id())},
          {"unknown", special_token(facts, facts.tokenizer->unknown_id())}};
}

Json json_of(const Facts& facts, bool weights) {
  const ModelConfig& config = facts.config;
  Json json = {{"path", facts.files.path},
               {"format", facts.files.gguf ? "GGUF" : "safetensors"},
               {"bytes", facts.bytes},
               {"architecture", config.architecture},
               {"n_parameters", facts.n_parameters},
               {"n_layers", config.n_layers},
               {"n_heads", config.n_heads},
               {"n_kv_heads", config.n_kv_heads},
               {"d_model", config.d_model},
               {"d_head", config.d_head},
               {"d_mlp", config.d_mlp},
               {"d_vocab", config.d_vocab},
               {"n_ctx", config.n_ctx},
               {"activation", name_of(config.activation)},
               {"gated_mlp", config.gated_mlp},
               {"n_experts", config.experts.count},
               {"norm", name_of(config.norm)},
               {"norm_eps", config.norm_eps},
               {"rope", rope_json(config)},
               {"tied_unembed", config.tied_unembed},
               {"stored_dtypes", facts.dtypes},
               {"tokenizer", tokenizer_json(facts)}};
  if (!weights) return json;
  Json list = Json::array();
  for (const auto& [name, tensor] : facts.files.tensors) {
    list.push_back(
        {{"name", name}, {"dtype", layout(tensor.dtype).name}, {"shape", tensor.shape}, {"bytes", tensor.bytes}});
  }
  json["weights"] = std::move(list);
  return json;
}

std::string size_words(size_t bytes) {
  char text[32];
  const auto megabytes = static_cast<double>(bytes) / 1e6;
  std::snprintf(text, sizeof text, megabytes < 1000 ? "%.1f MB" : "%.2f GB",
                megabytes < 1000 ? megabytes : megabytes / 1000);
  return text;
}

std::string dtype_words(const std::map<std::string, int64_t>& dtypes) {
  std::vector<std::pair<std::string, int64_t>> sorted(dtypes.begin(), dtypes.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [name, count] : sorted)
    text += str(text.empty() ? "" : ", ", name, " (", count, count == 1 ? " tensor)" : " tensors)");
  return text;
}

std::string position_words(const ModelConfig& config) {
  if (config.positions != PositionEmbedding::kRotary) return name_of(config.positions);
  const Rope& rope = config.rope;
  std::string text = str("rotary, base ", rope.base, ", ", rope.dims, " of ", config.d_head, " dimensions of a head");
  if (rope.scaling != RopeScaling::kNone) text += str(", scaling ", name_of(rope.scaling), " by ", rope.factor);
  return text;
}

std::string special_words(const Facts& facts) {
  const std::pair<const char*, std::optional<int64_t>> roles[] = {{"bos", facts.tokenizer->bos_id()},
                                                                  {"eos", facts.tokenizer->eos_id()},
                                                                  {"pad", facts.tokenizer->pad_id()},
                                                                  {"unknown", facts.tokenizer->unknown_id()}};
  std::string text;
  for (const auto& [role, id] : roles) {
    if (id) text += str(text.empty() ? "" : ", ", role, " ", visible(facts.tokenizer->token(*id)), " (", *id, ")");
  }
  return text.empty() ? "none" : text;
}

std::string table_of(const Facts& facts) {
  const ModelConfig& config = facts.config;
  Table table({{""}, {""}});
  table.add({"path", visible(facts.files.path)});
  table.add({"format", str(facts.files.gguf ? "GGUF" : "safetensors", ", ", size_words(facts.bytes), " on disk")});
  table.add({"stored as", dtype_words(facts.dtypes)});
  table.add({"architecture", config.architecture});
  table.add({"parameters", grouped(facts.n_parameters)});
  table.add({"layers", std::to_string(config.n_layers)});
  table.add(
      {"heads", str(config.n_heads, config.grouped_query() ? str(" (", config.n_kv_heads, " for keys and values)") : "",
                    ", d_head ", config.d_head)});
  table.add({"d_model", std::to_string(config.d_model)});
  if (!config.attention_only)
    table.add({"d_mlp", str(config.d_mlp, config.gated_mlp ? ", gated" : "", ", ", name_of(config.activation))});
  if (config.experts.count > 0)
    table.add({"experts", str(config.experts.count, ", ", config.experts.per_token, " for each token")});
  table.add({"norm", str(name_of(config.norm), ", eps ", config.norm_eps)});
  table.add({"positions", position_words(config)});
  table.add({"context", grouped(config.n_ctx) + " tokens"});
  table.add({"vocabulary", grouped(config.d_vocab) + (config.tied_unembed ? ", unembedding tied to the embedding"
                                                                          : ", unembedding of its own")});
  if (facts.tokenizer) {
    table.add(
        {"tokenizer", tokenizer_kind(facts.files) + ", " + grouped(facts.tokenizer->vocabulary_size()) + " tokens"});
    table.add({"special tokens", special_words(facts)});
  } else {
    table.add({"tokenizer", "none: " + facts.no_tokenizer});
  }
  return table.text();
}

std::string weights_table(const ModelFiles& files) {
  Table table({{"tensor"}, {"stored as"}, {"shape"}});
  for (const auto& [name, tensor] : files.tensors) {
    std::string shape;
    for (const int64_t size : tensor.shape) shape += (shape.empty() ? "" : " ") + std::to_string(size);
    table.add({visible(name), std::string(layout(tensor.dtype).name), shape});
  }
  return table.text();
}

}  // namespace

int run(const InfoArguments& arguments) {
  const Facts facts = look(arguments.model);
  if (arguments.json) {
    print_json(json_of(facts, arguments.weights));
    return kSuccess;
  }
  print(bold(visible(std::filesystem::path(facts.files.path).filename().string())) + "\n");
  print(table_of(facts));
  if (arguments.weights) print("\n" + weights_table(facts.files));
  return kSuccess;
}

}  // namespace glassformer::cli
