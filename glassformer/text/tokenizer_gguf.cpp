// The tokenizer in the metadata of a GGUF file. It has the vocabulary and the merges, but of the other parts only a
// name
// (`tokenizer.ggml.pre`); what stands behind a name is what the tokenizer.json of those models says.

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/io/gguf.h"
#include "glassformer/text/pipeline.h"

namespace glassformer {
namespace text {
namespace {

/// Kinds of tokens in `tokenizer.ggml.token_type`.
enum TokenType : int64_t { kUnknownToken = 2, kControlToken = 3, kUserDefinedToken = 4 };

struct Recipe {
  std::string_view name;
  const char* pattern;  // Null: GPT-2's, within ByteLevel.
  bool single_digits = false;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // Where the file does not say.
};

const std::vector<Recipe>& recipes() {
  // Only what has been compared with the tokenizer.json of these models.
  static const std::vector<Recipe> all = {
      {"gpt-2", nullptr},
      {"gpt2", nullptr},
      {"phi-2", nullptr},
      {"smollm", nullptr, true},
      {"llama3", kLlama3Pattern, false, false, true, true},
      {"llama-v3", kLlama3Pattern, false, false, true, true},
      {"llama-bpe", kLlama3Pattern, false, false, true, true},
      {"qwen2", kQwen2Pattern, false, true},
  };
  return all;
}

const Recipe& find_recipe(const GgufFile& file) {
  // Files from before that key was invented don't say; GPT-2 has never had but one.
  const bool gpt2 = file.get<std::string>("general.architecture", "") == "gpt2";
  const std::string name = file.get<std::string>("tokenizer.ggml.pre", gpt2 ? "gpt-2" : "default");
  std::string known;
  for (const Recipe& recipe : recipes()) {
    if (recipe.name == name) return recipe;
    known += str(known.empty() ? "" : ", ", recipe.name);
  }
  throw UnsupportedError(str(file.path(), ": tokenizer.ggml.pre '", name, "' (supported: ", known, ")"));
}

void read_vocabulary(const GgufFile& file, Vocabulary& vocabulary) {
  const auto& tokens = file.at<std::vector<std::string>>("tokenizer.ggml.tokens");
  vocabulary.reserve(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) vocabulary.add(tokens[id], static_cast<int64_t>(id));
}

void read_merges(const GgufFile& file, PipelineParts& parts) {
  const auto& merges = file.at<std::vector<std::string>>("tokenizer.ggml.merges");
  parts.merges.reserve(merges.size());
  for (const std::string& merge : merges) {
    // A token may itself begin with a space, but only as its first character.
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos) {
      throw FileError(file.path(), str("tokenizer.ggml.merges: '", merge, "' has no space between two tokens"));
    }
    const auto first = parts.vocabulary.find(merge.substr(0, space));
    const auto second = parts.vocabulary.find(merge.substr(space + 1));
    const auto joined = parts.vocabulary.find(merge.substr(0, space) + merge.substr(space + 1));
    if (!first || !second || !joined) {
      throw FileError(file.path(), str("tokenizer.ggml.merges: '", merge, "' is of tokens that the vocabulary lacks"));
    }
    parts.merges.push_back({*first, *second, *joined});
  }
}

void read_added_tokens(const GgufFile& file, PipelineParts& parts) {
  const auto types = file.get<std::vector<int64_t>>("tokenizer.ggml.token_type", {});
  if (!types.empty() && types.size() != static_cast<std::size_t>(parts.vocabulary.end())) {
    throw FileError(file.path(), str("tokenizer.ggml.token_type has ", types.size(), " entries for ",
                                     parts.vocabulary.end(), " tokens"));
  }
  std::vector<AddedToken> added;
  for (std::size_t id = 0; id < types.size(); ++id) {
    const bool special = types[id] == kControlToken || types[id] == kUnknownToken;
    if (!special && types[id] != kUserDefinedToken) continue;
    AddedToken token;
    token.content = parts.vocabulary.token(static_cast<int64_t>(id));
    token.special = special;
    token.normalized = false;
    added.push_back(std::move(token));
  }
  parts.added_tokens.add(added, parts.vocabulary, parts.vocabulary.size());
}

std::optional<int64_t> read_role(const GgufFile& file, std::string_view name, const Vocabulary& vocabulary) {
  const std::string key = str("tokenizer.ggml.", name, "_token_id");
  if (file.metadata.find(key) == file.metadata.end()) return std::nullopt;
  const int64_t id = file.at<int64_t>(key);
  if (!vocabulary.has(id)) {
    throw FileError(file.path(), str(key, " is ", id, ", but there are just ", vocabulary.end(), " tokens"));
  }
  return id;
}

Roles read_roles(const GgufFile& file, const Vocabulary& vocabulary) {
  Roles roles;
  roles.bos = read_role(file, "bos", vocabulary);
  roles.eos = read_role(file, "eos", vocabulary);
  roles.pad = read_role(file, "padding", vocabulary);
  roles.unknown = read_role(file, "unknown", vocabulary);
  roles.chat_template = file.get<std::string>("tokenizer.chat_template", "");
  return roles;
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Recipe& recipe, bool add_prefix_space) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  if (recipe.single_digits) steps.push_back(make_digits(true));
  if (recipe.pattern) steps.push_back(make_split(make_regex(recipe.pattern), SplitBehavior::kIsolated, false));
  steps.push_back(make_byte_level(add_prefix_space, recipe.pattern == nullptr));
  return make_pre_tokenizer_sequence(std::move(steps));
}

/// BOS in front and EOS behind, where the file asks for them.
std::unique_ptr<PostProcessor> make_post_processor(const GgufFile& file, const Recipe& recipe, const Roles& roles,
                                                   const Vocabulary& vocabulary) {
  const auto single = [&](std::optional<int64_t> id) { return TemplatePart{false, {*id}, {vocabulary.token(*id)}}; };
  std::vector<TemplatePart> parts;
  const bool bos = file.get<bool>("tokenizer.ggml.add_bos_token", recipe.add_bos) && roles.bos;
  const bool eos = file.get<bool>("tokenizer.ggml.add_eos_token", false) && roles.eos;
  if (bos) parts.push_back(single(roles.bos));
  parts.push_back({true, {}, {}});
  if (eos) parts.push_back(single(roles.eos));
  return bos || eos ? make_template(std::move(parts)) : nullptr;
}

std::shared_ptr<const Tokenizer> read_tokenizer(const GgufFile& file) {
  const auto& kind = file.at<std::string>("tokenizer.ggml.model");
  if (kind != "gpt2") {
    throw UnsupportedError(
        str(file.path(), ": tokenizer.ggml.model '", kind, "' (supported: gpt2, which is byte-level BPE)"));
  }
  const Recipe& recipe = find_recipe(file);
  PipelineParts parts;
  read_vocabulary(file, parts.vocabulary);
  parts.model_size = parts.vocabulary.size();
  read_merges(file, parts);
  read_added_tokens(file, parts);
  if (recipe.nfc) parts.normalizer = make_normal_form(NormalForm::kNfc);
  parts.pre_tokenizer = make_pre_tokenizer(recipe, file.get<bool>("tokenizer.ggml.add_space_prefix", false));
  parts.bpe.ignore_merges = recipe.ignore_merges;
  parts.decoder = make_byte_level_decoder();
  parts.is_byte_level_decoder = true;
  parts.added_tokens.finish(parts.vocabulary, parts.normalizer.get());
  Roles roles = read_roles(file, parts.vocabulary);
  parts.post_processor = make_post_processor(file, recipe, roles, parts.vocabulary);
  return std::make_shared<Pipeline>(std::move(parts), std::move(roles));
}

}  // namespace
}  // namespace text

std::shared_ptr<const Tokenizer> Tokenizer::from_gguf(const GgufFile& file) { return text::read_tokenizer(file); }

}  // namespace glassformer
