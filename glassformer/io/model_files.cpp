#include "glassformer/io/model_files.h"

#include <simdjson.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <vector>

#include "glassformer/base/errors.h"
#include "glassformer/io/checks.h"
#include "glassformer/io/safetensors.h"

namespace glassformer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

/// The names in `folder`, sorted.
std::vector<std::string> list(const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) throw FileError(folder.string(), "can't be listed: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> ending_in(const std::vector<std::string>& names, std::string_view ending) {
  std::vector<std::string> found;
  std::copy_if(names.begin(), names.end(), std::back_inserter(found),
               [&](const auto& n) { return n.ends_with(ending); });
  return found;
}

std::string joined(const std::vector<std::string>& names) {
  constexpr size_t kMost = 8;
  std::string text;
  for (size_t i = 0; i < std::min(kMost, names.size()); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > kMost ? str(text, ", … (", names.size(), ")") : text;
}

std::string read_text(const fs::path& path) {
  const auto file = MappedFile::open(path.string());
  refuse_lfs_pointer(*file);
  return std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
}

std::string read_optional_text(const fs::path& path) { return is_there(path) ? read_text(path) : std::string(); }

// ---- Weights in a folder ----

void add_shard(ModelFiles& model, const fs::path& path) {
  for (StoredTensor& tensor : read_safetensors(MappedFile::open(path.string()))) {
    const auto [entry, is_new] = model.tensors.try_emplace(tensor.name, tensor);
    if (!is_new) {
      throw FileError(path.string(), str("tensor ", quote(tensor.name), " is also in ", entry->second.file->path()));
    }
  }
}

/// A shard lies beside its index; anything else in that place is no name that a model's files have.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

std::map<std::string, std::string> read_weight_map(const fs::path& path) {
  const std::string text = read_text(path);
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  if (const auto error = parser.parse(text).get(root)) {
    throw FileError(path.string(), str("is not JSON: ", simdjson::error_message(error), " (incomplete download?)"));
  }
  simdjson::dom::object entries;
  if (root["weight_map"].get(entries) != simdjson::SUCCESS) {
    throw FileError(path.string(), "has no object 'weight_map'");
  }
  std::map<std::string, std::string> weight_map;
  for (const auto [tensor, value] : entries) {
    std::string_view shard;
    if (value.get(shard) != simdjson::SUCCESS || !is_plain_name(shard)) {
      throw FileError(path.string(), "names no file beside it for tensor " + quote(tensor));
    }
    if (!weight_map.emplace(tensor, shard).second) {
      throw FileError(path.string(), "has tensor " + quote(tensor) + " twice");
    }
  }
  return weight_map;
}

void add_sharded(ModelFiles& model, const fs::path& folder) {
  const fs::path index = folder / kIndex;
  const std::map<std::string, std::string> weight_map = read_weight_map(index);
  std::map<std::string, std::string> first_tensors;  // By shard, for messages.
  for (const auto& [tensor, shard] : weight_map) first_tensors.try_emplace(shard, tensor);
  for (const auto& [shard, tensor] : first_tensors) {
    if (!is_there(folder / shard)) {
      throw FileError(index.string(), str("names the file ", quote(shard), " for tensor ", quote(tensor),
                                          ", which is missing (incomplete download?)"));
    }
  }
  for (const auto& [shard, tensor] : first_tensors) add_shard(model, folder / shard);
  for (const auto& [tensor, shard] : weight_map) {
    const auto found = model.tensors.find(tensor);
    if (found == model.tensors.end() || found->second.file->path() != (folder / shard).string()) {
      throw FileError(index.string(),
                      str("says that tensor ", quote(tensor), " is in ", quote(shard), ", but it is not there"));
    }
  }
}

bool is_pickle(const std::string& name) {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".ckpt");
}

[[noreturn]] void refuse_pickle(const std::string& path, const std::string& name) {
  throw UnsupportedError(path + ": the weights are a pickle (" + name +
                         "), which can run code; convert them to safetensors, in Python with "
                         "model.save_pretrained(folder, safe_serialization=True)");
}

[[noreturn]] void fail_without_weights(const fs::path& folder, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (is_pickle(name) && name != "training_args.bin") refuse_pickle(folder.string(), name);
  }
  if (const auto candidates = ending_in(names, ".gguf"); !candidates.empty()) {
    throw FileError(folder.string(),
                    "has config.json, but no safetensors; to use a GGUF file, name it: " + joined(candidates));
  }
  throw FileError(folder.string(), str("has config.json, but no weights; looked for ", kWeights, ", ", kIndex,
                                       " and *.safetensors (incomplete download?)"));
}

void add_weights(ModelFiles& model, const fs::path& folder, const std::vector<std::string>& names) {
  if (is_there(folder / kWeights)) return add_shard(model, folder / kWeights);
  if (is_there(folder / kIndex)) return add_sharded(model, folder);
  const std::vector<std::string> candidates = ending_in(names, ".safetensors");
  if (candidates.empty()) fail_without_weights(folder, names);
  if (candidates.size() > 1) {
    throw FileError(folder.string(),
                    str("has several weight files, but neither ", kWeights, " nor ", kIndex, ": ", joined(candidates)));
  }
  if (candidates[0].find("-of-") != std::string::npos) {
    throw FileError(folder.string(),
                    str("has ", candidates[0], ", one shard of several, but not ", kIndex, " (incomplete download?)"));
  }
  add_shard(model, folder / candidates[0]);
}

// ---- A folder, a file ----

ModelFiles open_gguf(const std::string& path, const std::shared_ptr<MappedFile>& file, bool with_tensors) {
  ModelFiles model;
  model.path = path;
  model.gguf = std::make_shared<GgufFile>(read_gguf(file));
  const auto parts = model.gguf->get<int64_t>("split.count", 1);
  if (parts > 1) {
    throw UnsupportedError(str(path, ": is one of ", parts, " parts; join them with 'llama-gguf-split --merge'"));
  }
  if (with_tensors) {
    for (const StoredTensor& tensor : model.gguf->tensors) model.tensors.emplace(tensor.name, tensor);
  }
  return model;
}

ModelFiles open_file(const std::string& path, bool with_tensors) {
  const auto file = MappedFile::open(path);
  const std::string_view bytes(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  if (bytes.starts_with("GGUF") || path.ends_with(".gguf")) return open_gguf(path, file, with_tensors);
  refuse_lfs_pointer(*file);
  if (path.ends_with(".safetensors") || path.ends_with(".json")) {
    throw FileError(path, "is one file of a model; give the folder that has its config.json");
  }
  if (is_pickle(path)) refuse_pickle(path, fs::path(path).filename().string());
  throw FileError(path, "is not a model: expected a GGUF file, or a folder with config.json and safetensors");
}

ModelFiles open_folder(const fs::path& folder, bool with_tensors) {
  const std::vector<std::string> names = list(folder);
  if (!is_there(folder / "config.json")) {
    const std::vector<std::string> candidates = ending_in(names, ".gguf");
    if (candidates.size() == 1) return open_file((folder / candidates[0]).string(), with_tensors);
    if (candidates.size() > 1) {
      throw FileError(folder.string(), "has several GGUF files; name one of them: " + joined(candidates));
    }
    throw FileError(folder.string(), "is not a model: it has neither config.json nor a GGUF file");
  }
  ModelFiles model;
  model.path = folder.string();
  model.config_json = read_text(folder / "config.json");
  model.tokenizer_json = read_optional_text(folder / "tokenizer.json");
  model.tokenizer_config_json = read_optional_text(folder / "tokenizer_config.json");
  model.generation_config_json = read_optional_text(folder / "generation_config.json");
  model.chat_template = read_optional_text(folder / "chat_template.jinja");
  if (with_tensors) add_weights(model, folder, names);
  return model;
}

// ---- The cache of Hugging Face ----

fs::path expand_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  if (home == nullptr || (path != "~" && !path.starts_with("~/"))) return path;
  return path.size() < 3 ? fs::path(home) : fs::path(home) / path.substr(2);
}

fs::path cache_folder() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (const auto hub = variable("HF_HUB_CACHE"); !hub.empty()) return expand_home(hub);
  if (const auto hub = variable("HUGGINGFACE_HUB_CACHE"); !hub.empty()) return expand_home(hub);
  if (const auto home = variable("HF_HOME"); !home.empty()) return expand_home(home) / "hub";
  if (const auto cache = variable("XDG_CACHE_HOME"); !cache.empty()) return expand_home(cache) / "huggingface" / "hub";
  return expand_home("~/.cache/huggingface/hub");
}

/// `org/name` or `name`, as the cache can have it.
bool is_model_name(std::string_view name) {
  constexpr size_t kLongest = 96;
  if (name.size() > kLongest || std::count(name.begin(), name.end(), '/') > 1) return false;
  const auto fits = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == '/';
  };
  const auto bare = [](char c) { return c == '/' || c == '.' || c == '-'; };
  return !name.empty() && std::all_of(name.begin(), name.end(), fits) && !bare(name.front()) && !bare(name.back());
}

fs::path snapshot_of(const fs::path& cached) {
  const fs::path snapshots = cached / "snapshots", reference = cached / "refs" / "main";
  if (is_there(reference)) {
    std::string commit = read_text(reference);
    while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) commit.pop_back();
    const bool plain = is_plain_name(commit);
    if (!plain || !is_folder(snapshots / commit)) {
      throw FileError(reference.string(), str("names the snapshot ", quote(commit), ", which is not in ",
                                              snapshots.string(), " (incomplete download?)"));
    }
    return snapshots / commit;
  }
  const std::vector<std::string> names = is_folder(snapshots) ? list(snapshots) : std::vector<std::string>();
  if (names.size() == 1) return snapshots / names[0];
  throw FileError(cached.string(),
                  names.empty()
                      ? "has no snapshot (incomplete download?)"
                      : "has several snapshots and no refs/main; give the folder of one of them: " + joined(names));
}

ModelFiles open_cached(const std::string& name, bool with_tensors) {
  if (!is_model_name(name)) throw FileError(quote(name), "no such file or folder, and not a name like 'org/model'");
  std::string folder = "models--" + name;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const fs::path cached = cache_folder() / folder;
  if (!is_folder(cached)) {
    throw FileError(name, str("no such file or folder, and not in the local cache (looked for ", cached.string(),
                              "); nothing is downloaded here: run 'hf download ", name, "' first"));
  }
  return open_folder(snapshot_of(cached), with_tensors);
}

}  // namespace

const StoredTensor& ModelFiles::tensor(std::string_view name) const {
  if (const auto found = tensors.find(name); found != tensors.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [key, value] : tensors) names.push_back(key);
  throw NameError(str(path, ": no tensor ", quote(name), did_you_mean(name, names)));
}

ModelFiles open_model(const std::string& name_or_path, bool with_tensors) {
  if (name_or_path.empty() || name_or_path.find('\0') != std::string::npos) {
    throw FileError(quote(name_or_path), "not the name of a file, a folder or a model");
  }
  const fs::path path = expand_home(name_or_path);
  if (is_folder(path)) return open_folder(path, with_tensors);
  if (is_there(path)) return open_file(path.string(), with_tensors);
  return open_cached(name_or_path, with_tensors);
}

}  // namespace glassformer
