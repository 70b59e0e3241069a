// tokenizer.json and tokenizer_config.json.

#include <algorithm>
#include <limits>

#include "glassformer/text/component_json.h"
#include "glassformer/text/json_view.h"
#include "glassformer/text/pipeline.h"

namespace glassformer {
namespace text {
namespace {

/// The same JSON with integers of more than 18 digits as real numbers. transformers writes "no limit" as one of 31
/// digits (model_max_length), which simdjson takes for damage.
std::string large_integers_as_reals(std::string_view json) {
  constexpr std::string_view kDigits = "0123456789";
  std::string text;
  for (std::size_t i = 0; i < json.size();) {
    std::size_t end = i + 1;
    if (json[i] == '"') {
      while (end < json.size() && json[end] != '"') end += json[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, json.size());
    } else if (kDigits.find(json[i]) != kDigits.npos) {
      end = std::min(json.find_first_not_of("0123456789+-.eE", i), json.size());
    }
    const std::string_view part = json.substr(i, end - i);
    text += part;
    if (part.size() > 18 && part.find_first_not_of(kDigits) == part.npos) text += ".0";
    i = end;
  }
  return text;
}

simdjson::dom::element parse(simdjson::dom::parser& parser, std::string_view json, const std::string& path) {
  simdjson::dom::element root;
  auto error = parser.parse(simdjson::padded_string(json)).get(root);
  if (error == simdjson::NUMBER_ERROR) {
    error = parser.parse(simdjson::padded_string(large_integers_as_reals(json))).get(root);
  }
  if (error) {
    throw FileError(path, str("is not JSON: ", simdjson::error_message(error)));
  }
  if (!root.is_object()) throw FileError(path, "is not a JSON object");
  return root;
}

/// Ids are places in tables, so one far beyond the number of tokens can only be damage.
std::int64_t checked_id(std::int64_t id, std::size_t tokens, const JsonView& place) {
  const auto most = static_cast<std::int64_t>(tokens) * 16 + (1 << 20);
  if (id < 0 || id > most) place.fail(str("is ", id, ", but there are just ", tokens, " tokens"));
  return id;
}

void read_vocabulary(const JsonView& json, Vocabulary& vocabulary) {
  const std::size_t size = json.size();
  vocabulary.reserve(size);
  json.for_each_member([&](std::string_view token, simdjson::dom::element value) {
    std::int64_t id = 0;
    if (value.get(id) || id < 0 || id > std::numeric_limits<std::int32_t>::max()) {
      json.member_view(token, value).fail("is not an id");
    }
    checked_id(id, size, json);
    if (!is_valid_utf8(token)) json.fail(str("has half of a surrogate pair in the token of id ", id));
    if (!vocabulary.add(token, id)) {
      json.fail(str("gives the id ", id, " to '", vocabulary.token(id), "' and to '", token, "'"));
    }
  });
}

Merge make_merge(const JsonView& json, std::string_view first, std::string_view second, const PipelineParts& parts,
                 std::size_t rank) {
  const std::string& prefix = parts.bpe.continuing_prefix;
  const auto left = parts.vocabulary.find(first), right = parts.vocabulary.find(second);
  std::string joined(first);
  if (second.size() >= prefix.size()) joined += second.substr(prefix.size());
  const auto result = parts.vocabulary.find(joined);
  if (!left || !right || !result) {
    json.fail(str("has '", first, ' ', second, "' as number ", rank, ", but the vocabulary has no '",
                  !left    ? first
                  : !right ? second
                           : std::string_view(joined),
                  "'"));
  }
  return {*left, *right, *result};
}

void read_merges(const JsonView& json, PipelineParts& parts) {
  parts.merges.reserve(json.size());
  json.for_each_value([&](simdjson::dom::element value) {
    const std::size_t rank = parts.merges.size();
    std::string_view first, second, line;
    simdjson::dom::array pair;
    if (!value.get(line)) {
      if (line.starts_with("#version")) return;
      const std::size_t space = line.find(' ');
      if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
        json.fail(str("has '", line, "' as number ", rank, "; expected two tokens and a space between them"));
      }
      first = line.substr(0, space);
      second = line.substr(space + 1);
    } else if (value.get(pair) || pair.size() != 2 || pair.at(0).get(first) || pair.at(1).get(second)) {
      json.fail(str("has number ", rank, ", which is no pair of tokens"));
    }
    parts.merges.push_back(make_merge(json, first, second, parts, rank));
  });
}

/// Files from before the field `type` came: recognised by their members, as `tokenizers` does.
std::string_view model_type(const JsonView& model) {
  if (const auto type = model.find("type")) return type->string();
  if (model.find("merges")) return "BPE";
  const auto vocabulary = model.find("vocab");
  if (vocabulary && vocabulary->is_array()) return "Unigram";
  if (model.find("continuing_subword_prefix") || model.find("max_input_chars_per_word")) return "WordPiece";
  return "WordLevel";
}

void read_model(const JsonView& model, PipelineParts& parts) {
  const std::string_view type = model_type(model);
  if (type != "BPE") model.unsupported(str("tokenizer of the kind '", type, "' (supported: BPE)"));
  if (const auto dropout = model.find("dropout"); dropout && dropout->number() != 0) {
    dropout->unsupported("BPE with dropout, which gives other tokens each time");
  }
  parts.bpe.unknown_token = model.string_or("unk_token", "");
  parts.bpe.continuing_prefix = model.string_or("continuing_subword_prefix", "");
  parts.bpe.end_suffix = model.string_or("end_of_word_suffix", "");
  parts.bpe.fuse_unknown = model.boolean_or("fuse_unk", false);
  parts.bpe.byte_fallback = model.boolean_or("byte_fallback", false);
  parts.bpe.ignore_merges = model.boolean_or("ignore_merges", false);
  read_vocabulary(model.at("vocab"), parts.vocabulary);
  read_merges(model.at("merges"), parts);
}

AddedToken read_added_token(const JsonView& json) {
  AddedToken token;
  token.content = json.at("content").string();
  token.special = json.boolean_or("special", false);
  token.single_word = json.boolean_or("single_word", false);
  token.lstrip = json.boolean_or("lstrip", false);
  token.rstrip = json.boolean_or("rstrip", false);
  token.normalized = json.boolean_or("normalized", !token.special);
  return token;
}

void read_added_tokens(const JsonView& json, PipelineParts& parts) {
  std::vector<AddedToken> tokens;
  json.for_each([&](const JsonView& entry) { tokens.push_back(read_added_token(entry)); });
  parts.added_tokens.add(tokens, parts.vocabulary, parts.model_size);
}

/// A token of tokenizer_config.json: its spelling, or an object that has it as `content`.
std::optional<int64_t> read_role(const JsonView& config, std::string_view key, const Vocabulary& vocabulary) {
  const auto token = config.find(key);
  if (!token) return std::nullopt;
  const std::string_view spelling = token->is_object() ? token->at("content").string() : token->string();
  return vocabulary.find(spelling);
}

std::string read_chat_template(const JsonView& config) {
  const auto chat = config.find("chat_template");
  if (!chat) return {};
  if (!chat->is_array()) return std::string(chat->string());
  std::string chosen;
  chat->for_each([&](const JsonView& entry) {
    const std::string_view name = entry.at("name").string();
    if (name == "default" || chosen.empty()) chosen = entry.at("template").string();
  });
  return chosen;
}

Roles read_config(std::string_view json, const std::string& path, const Vocabulary& vocabulary) {
  Roles roles;
  if (json.empty()) return roles;
  simdjson::dom::parser parser;
  const JsonView config(path, "", parse(parser, json, path));
  roles.bos = read_role(config, "bos_token", vocabulary);
  roles.eos = read_role(config, "eos_token", vocabulary);
  roles.pad = read_role(config, "pad_token", vocabulary);
  roles.unknown = read_role(config, "unk_token", vocabulary);
  roles.chat_template = read_chat_template(config);
  return roles;
}

std::string config_path(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "tokenizer_config.json";
}

std::shared_ptr<const Tokenizer> read_tokenizer(std::string_view json, const std::string& path,
                                                std::string_view config_json, std::string_view chat_template) {
  simdjson::dom::parser parser;
  const JsonView root(path, "", parse(parser, json, path));
  PipelineParts parts;
  read_model(root.at("model"), parts);
  parts.model_size = parts.vocabulary.size();
  if (const auto normalizer = root.find("normalizer")) parts.normalizer = read_normalizer(*normalizer);
  if (const auto pre_tokenizer = root.find("pre_tokenizer")) parts.pre_tokenizer = read_pre_tokenizer(*pre_tokenizer);
  if (const auto processor = root.find("post_processor")) parts.post_processor = read_post_processor(*processor);
  if (const auto decoder = root.find("decoder")) {
    parts.decoder = read_decoder(*decoder);
    parts.is_byte_level_decoder = decoder->at("type").string() == "ByteLevel";
  }
  if (const auto added = root.find("added_tokens")) read_added_tokens(*added, parts);
  parts.added_tokens.finish(parts.vocabulary, parts.normalizer.get());
  Roles roles = read_config(config_json, config_path(path), parts.vocabulary);
  if (!chat_template.empty()) roles.chat_template = chat_template;
  return std::make_shared<Pipeline>(std::move(parts), std::move(roles));
}

}  // namespace
}  // namespace text

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view json, const std::string& path,
                                                      std::string_view config_json, std::string_view chat_template) {
  return text::read_tokenizer(json, path, config_json, chat_template);
}

}  // namespace glassformer
