#include "glassformer/io/model_files.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <optional>

#include "glassformer/base/errors.h"
#include "tests/fuzz/file_builders.h"

using namespace glassformer;

namespace {

constexpr const char* kConfig = R"({"model_type":"llama"})";
constexpr const char* kIndex = "model.safetensors.index.json";

/// A safetensors file with these tensors of one byte each.
std::string weights(const std::vector<std::string>& names) {
  std::string header;
  for (size_t i = 0; i < names.size(); ++i) {
    header += (i ? "," : "") + ("\"" + names[i]) + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" +
              std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  return files::safetensors("{" + header + "}", std::string(names.size(), 'w'));
}

std::string small_gguf() {
  return files::Gguf().text("general.architecture", "llama").tensor("t", {4}, 0, std::string(16, '\0')).bytes();
}

template <typename E = FileError>
std::string refusal(const files::ScratchFolder& folder, const std::string& name = "m") {
  return folder.error<E>([&] { open_model(folder.path() + "/" + name); });
}

/// Sets an environment variable until the end of the scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~Variable() { set(old_ ? old_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) { value == nullptr ? ::unsetenv(name_) : ::setenv(name_, value, 1); }

  const char* name_;
  std::optional<std::string> old_;
};

}  // namespace

TEST_CASE("a folder with one safetensors file") {
  for (const char* name : {"model.safetensors", "weights.safetensors"}) {
    const files::ScratchFolder folder;
    folder.write("m/config.json", kConfig);
    folder.write("m/tokenizer.json", "{}");
    folder.write("m/generation_config.json", "{\"g\":1}");
    folder.write("m/chat_template.jinja", "{{ x }}");
    folder.write(std::string("m/") + name, weights({"wte.weight", "wpe.weight"}));
    const ModelFiles model = open_model(folder.path() + "/m");
    CHECK(model.path == folder.path() + "/m");
    CHECK(model.config_json == kConfig);
    CHECK(model.tokenizer_json == "{}");
    CHECK(model.tokenizer_config_json.empty());
    CHECK(model.generation_config_json == "{\"g\":1}");
    CHECK(model.chat_template == "{{ x }}");
    CHECK(model.gguf == nullptr);
    CHECK(model.tensors.size() == 2);
    CHECK(model.tensor("wte.weight").bytes == 1);
    CHECK(folder.error<NameError>([&] { model.tensor("wte.weigth"); })
              .find("no tensor 'wte.weigth'; nearest: wte.weight") != std::string::npos);
  }
}

TEST_CASE("model.safetensors wins over what else lies in the folder") {
  const files::ScratchFolder folder;
  folder.write("m/config.json", kConfig);
  folder.write("m/model.safetensors", weights({"a"}));
  folder.write("m/other.safetensors", weights({"b"}));
  folder.write("m/pytorch_model.bin", "pickle");
  CHECK(open_model(folder.path() + "/m").tensors.contains("a"));
}

TEST_CASE("a sharded folder") {
  const files::ScratchFolder folder;
  folder.write("m/config.json", kConfig);
  folder.write("m/one.safetensors", weights({"a", "b"}));
  folder.write("m/two.safetensors", weights({"c"}));
  const auto index = [&](const std::string& entries) {
    folder.write(std::string("m/") + kIndex, "{\"weight_map\":{" + entries + "}}");
  };
  index(R"("a":"one.safetensors","b":"one.safetensors","c":"two.safetensors")");
  const ModelFiles model = open_model(folder.path() + "/m");
  CHECK(model.tensors.size() == 3);
  CHECK(model.tensor("c").file->path() == folder.path() + "/m/two.safetensors");

  const std::string prefix = std::string("m/") + kIndex + ": ";
  index(R"("a":"one.safetensors","c":"three.safetensors")");
  CHECK(refusal(folder) ==
        prefix + "names the file 'three.safetensors' for tensor 'c', which is missing (incomplete download?)");
  index(R"("a":"one.safetensors","b":"two.safetensors")");
  CHECK(refusal(folder) == prefix + "says that tensor 'b' is in 'two.safetensors', but it is not there");
  index(R"("a":"one.safetensors","d":"two.safetensors")");
  CHECK(refusal(folder) == prefix + "says that tensor 'd' is in 'two.safetensors', but it is not there");
  index(R"("a":"one.safetensors","a":"one.safetensors")");
  CHECK(refusal(folder) == prefix + "has tensor 'a' twice");
  for (const char* shard : {"\"../secret\"", "\"/etc/passwd\"", "\"\"", "\"..\"", "\"a\\u0000b\"", "3"}) {
    index(std::string(R"("a":)") + shard);
    CHECK(refusal(folder) == prefix + "names no file beside it for tensor 'a'");
  }
  folder.write(std::string("m/") + kIndex, "{}");
  CHECK(refusal(folder) == prefix + "has no object 'weight_map'");
  folder.write(std::string("m/") + kIndex, "{\"weight_map\":");
  CHECK(refusal(folder).starts_with(prefix + "is not JSON: "));
  folder.write("m/two.safetensors", weights({"c", "a"}));
  index(R"("a":"one.safetensors","c":"two.safetensors")");
  CHECK(refusal(folder) == "m/two.safetensors: tensor 'a' is also in m/one.safetensors");
}

TEST_CASE("a folder that is no model says what is missing") {
  const files::ScratchFolder folder;
  folder.write("m/readme.txt", "x");
  CHECK(refusal(folder) == "m: is not a model: it has neither config.json nor a GGUF file");
  folder.write("m/config.json", kConfig);
  CHECK(refusal(folder) ==
        "m: has config.json, but no weights; looked for model.safetensors, model.safetensors.index.json and "
        "*.safetensors "
        "(incomplete download?)");
  CHECK(open_model(folder.path() + "/m", false).config_json == kConfig);
  folder.write("m/pytorch_model.bin", "pickle");
  CHECK(refusal<UnsupportedError>(folder) ==
        "m: the weights are a pickle (pytorch_model.bin), which can run code; convert them to safetensors, in Python "
        "with "
        "model.save_pretrained(folder, safe_serialization=True)");
  folder.write("m/model-00001-of-00002.safetensors", weights({"a"}));
  CHECK(
      refusal(folder) ==
      "m: has model-00001-of-00002.safetensors, one shard of several, but not model.safetensors.index.json (incomplete "
      "download?)");
  folder.write("m/other.safetensors", weights({"b"}));
  CHECK(refusal(folder) ==
        "m: has several weight files, but neither model.safetensors nor model.safetensors.index.json: "
        "model-00001-of-00002.safetensors, other.safetensors");
  folder.write("m/config.json", "");
  CHECK(refusal(folder) == "m/config.json: is empty (incomplete download?)");
}

TEST_CASE("without tensors no weight file is looked at") {
  const files::ScratchFolder folder;
  folder.write("m/config.json", kConfig);
  folder.write("m/model.safetensors", "damaged");
  const ModelFiles model = open_model(folder.path() + "/m", false);
  CHECK(model.config_json == kConfig);
  CHECK(model.tensors.empty());
}

TEST_CASE("a GGUF file, by its first bytes, or alone in a folder") {
  const files::ScratchFolder folder;
  folder.write("m/model.gguf", small_gguf());
  folder.write("m/anything.bin", small_gguf());
  for (const char* name : {"/m/model.gguf", "/m/anything.bin", "/m"}) {
    const ModelFiles model = open_model(folder.path() + name);
    REQUIRE(model.gguf != nullptr);
    CHECK(model.gguf->at<std::string>("general.architecture") == "llama");
    CHECK(model.tensor("t").shape == std::vector<int64_t>{4});
    CHECK(model.config_json.empty());
  }
  CHECK(open_model(folder.path() + "/m").path == folder.path() + "/m/model.gguf");
  CHECK(open_model(folder.path() + "/m", false).tensors.empty());
  folder.write("m/second.gguf", small_gguf());
  CHECK(refusal(folder) == "m: has several GGUF files; name one of them: model.gguf, second.gguf");
  folder.write("bad.gguf", "nothing of the kind");
  CHECK(refusal(folder, "bad.gguf") == "bad.gguf: is not a GGUF file: it doesn't begin with 'GGUF'");
  folder.write("part.gguf", files::Gguf().number("split.count", files::kU16, uint16_t{3}).bytes());
  CHECK(refusal<UnsupportedError>(folder, "part.gguf") ==
        "part.gguf: is one of 3 parts; join them with 'llama-gguf-split --merge'");
}

TEST_CASE("a single file that is not a whole model") {
  const files::ScratchFolder folder;
  folder.write("w.safetensors", weights({"a"}));
  folder.write("w.pth", "pickle");
  folder.write("w.txt", "text");
  CHECK(refusal(folder, "w.safetensors") ==
        "w.safetensors: is one file of a model; give the folder that has its config.json");
  CHECK(refusal<UnsupportedError>(folder, "w.pth").starts_with("w.pth: the weights are a pickle (w.pth)"));
  CHECK(refusal(folder, "w.txt") ==
        "w.txt: is not a model: expected a GGUF file, or a folder with config.json and safetensors");
}

TEST_CASE("a model by its name in the local cache") {
  const files::ScratchFolder folder;
  const std::string hub = folder.path() + "/hub";
  const std::string cached = "hub/models--org--tiny/";
  folder.write(cached + "snapshots/abc123/config.json", kConfig);
  folder.write(cached + "snapshots/abc123/model.safetensors", weights({"a"}));
  const Variable no_old("HUGGINGFACE_HUB_CACHE", nullptr);
  {
    const Variable cache("HF_HUB_CACHE", hub.c_str());
    CHECK(open_model("org/tiny").path == folder.path() + "/" + cached + "snapshots/abc123");
    folder.write(cached + "snapshots/def456/config.json", kConfig);
    CHECK(folder.error<FileError>([] { open_model("org/tiny"); }) ==
          "hub/models--org--tiny: has several snapshots and no refs/main; give the folder of one of them: abc123, "
          "def456");
    folder.write(cached + "refs/main", "abc123\n");
    CHECK(open_model("org/tiny").tensors.contains("a"));
    folder.write(cached + "refs/main", "../..");
    CHECK(folder.error<FileError>([] { open_model("org/tiny"); })
              .starts_with("hub/models--org--tiny/refs/main: names the snapshot '../..', which is not in "));
    folder.write(cached + "refs/main", "abc123");
    CHECK(
        folder.error<FileError>([] { open_model("org/other"); }) ==
        "org/other: no such file or folder, and not in the local cache (looked for hub/models--org--other); nothing is "
        "downloaded here: run 'hf download org/other' first");
    folder.write("hub/models--gpt2/snapshots/1/config.json", kConfig);
    CHECK(open_model("gpt2", false).config_json == kConfig);
  }
  const Variable no_cache("HF_HUB_CACHE", nullptr);
  {
    const Variable home("HF_HOME", folder.path().c_str());
    CHECK(open_model("org/tiny").tensors.contains("a"));
  }
  const Variable no_home("HF_HOME", nullptr);
  const files::ScratchFolder other;
  other.write("huggingface/hub/models--x/snapshots/1/config.json", kConfig);
  other.write(".cache/huggingface/hub/models--y/snapshots/1/config.json", kConfig);
  {
    const Variable xdg("XDG_CACHE_HOME", other.path().c_str());
    CHECK(open_model("x", false).config_json == kConfig);
  }
  const Variable no_xdg("XDG_CACHE_HOME", nullptr);
  const Variable home("HOME", other.path().c_str());
  CHECK(open_model("y", false).config_json == kConfig);
}

TEST_CASE("what is neither a path nor a name") {
  CHECK_THROWS_WITH_AS(open_model("/no/such/folder"),
                       "'/no/such/folder': no such file or folder, and not a name like 'org/model'", FileError);
  CHECK_THROWS_WITH_AS(open_model(""), "'': not the name of a file, a folder or a model", FileError);
  CHECK_THROWS_AS(open_model("../../etc"), FileError);
  CHECK_THROWS_AS(open_model("a/b/c"), FileError);
}
