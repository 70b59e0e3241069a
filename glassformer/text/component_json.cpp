#include "glassformer/text/component_json.h"

#include <limits>

#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

std::string_view type_of(const JsonView& json) { return json.at("type").string(); }

template <typename Part, typename Read>
std::vector<std::unique_ptr<Part>> read_list(const JsonView& json, std::string_view key, Read read) {
  std::vector<std::unique_ptr<Part>> parts;
  json.at(key).for_each([&](const JsonView& part) { parts.push_back(read(part)); });
  return parts;
}

/// {"String": "..."} or {"Regex": "..."}; older files have a bare string.
std::unique_ptr<Pattern> read_pattern(const JsonView& json) {
  if (json.is_string()) return make_literal(std::string(json.string()));
  if (const auto literal = json.find("String")) return make_literal(std::string(literal->string()));
  if (const auto regex = json.find("Regex")) return make_regex(std::string(regex->string()));
  json.fail("has neither 'String' nor 'Regex'");
}

SplitBehavior read_behavior(const JsonView& json) {
  const std::string_view name = json.string();
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  json.fail(str("is '", name, "', but should be Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous"));
}

std::size_t read_count(const JsonView& json) {
  const std::int64_t count = json.integer();
  if (count < 0 || count > std::numeric_limits<std::int32_t>::max())
    json.fail(str("is ", count, ", which is no count"));
  return static_cast<std::size_t>(count);
}

TemplatePart read_template_part(const JsonView& json, const JsonView& special_tokens) {
  if (const auto sequence = json.find("Sequence")) {
    if (sequence->at("id").string() != "A") json.fail("is a second text in the template for a single one");
    return {true, {}, {}};
  }
  const auto special = json.find("SpecialToken");
  if (!special) json.fail("has neither 'Sequence' nor 'SpecialToken'");
  const JsonView entry = special_tokens.at(special->at("id").string());
  TemplatePart part;
  entry.at("ids").for_each([&](const JsonView& id) { part.ids.push_back(id.integer()); });
  entry.at("tokens").for_each([&](const JsonView& token) { part.tokens.emplace_back(token.string()); });
  if (part.ids.size() != part.tokens.size()) entry.fail("has another number of ids than of tokens");
  return part;
}

std::unique_ptr<PostProcessor> read_template(const JsonView& json) {
  const JsonView special_tokens = json.at("special_tokens");
  std::vector<TemplatePart> parts;
  json.at("single").for_each([&](const JsonView& part) { parts.push_back(read_template_part(part, special_tokens)); });
  return make_template(std::move(parts));
}

}  // namespace

std::unique_ptr<Normalizer> read_normalizer(const JsonView& json) {
  const std::string_view type = type_of(json);
  if (type == "NFC") return make_normal_form(NormalForm::kNfc);
  if (type == "NFD") return make_normal_form(NormalForm::kNfd);
  if (type == "NFKC") return make_normal_form(NormalForm::kNfkc);
  if (type == "NFKD") return make_normal_form(NormalForm::kNfkd);
  if (type == "Lowercase") return make_lowercase();
  if (type == "StripAccents") return make_strip_accents();
  if (type == "ByteLevel") return make_byte_level_normalizer();
  if (type == "Strip") return make_strip(json.boolean_or("strip_left", true), json.boolean_or("strip_right", true));
  if (type == "Prepend") return make_prepend(std::string(json.at("prepend").string()));
  if (type == "Replace") return make_replace(read_pattern(json.at("pattern")), json.string_or("content", ""));
  if (type == "Sequence") {
    return make_normalizer_sequence(read_list<Normalizer>(json, "normalizers", read_normalizer));
  }
  json.unsupported(
      str("normalizer '", type,
          "' (supported: NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace, ByteLevel, "
          "Sequence)"));
}

std::unique_ptr<PreTokenizer> read_pre_tokenizer(const JsonView& json) {
  const std::string_view type = type_of(json);
  if (type == "ByteLevel") {
    return make_byte_level(json.boolean_or("add_prefix_space", true), json.boolean_or("use_regex", true));
  }
  if (type == "Split") {
    return make_split(read_pattern(json.at("pattern")), read_behavior(json.at("behavior")),
                      json.boolean_or("invert", false));
  }
  if (type == "Digits") return make_digits(json.boolean_or("individual_digits", false));
  if (type == "Whitespace") return make_whitespace();
  if (type == "WhitespaceSplit") return make_whitespace_split();
  if (type == "Punctuation") {
    const auto behavior = json.find("behavior");
    return make_punctuation(behavior ? read_behavior(*behavior) : SplitBehavior::kIsolated);
  }
  if (type == "Sequence") {
    return make_pre_tokenizer_sequence(read_list<PreTokenizer>(json, "pretokenizers", read_pre_tokenizer));
  }
  json.unsupported(str("pre-tokenizer '", type,
                       "' (supported: ByteLevel, Split, Digits, Whitespace, WhitespaceSplit, Punctuation, Sequence)"));
}

std::unique_ptr<PostProcessor> read_post_processor(const JsonView& json) {
  const std::string_view type = type_of(json);
  if (type == "ByteLevel") {
    if (!json.boolean_or("trim_offsets", true)) return make_post_processor_sequence({});
    return make_byte_level_trimmer(json.boolean_or("add_prefix_space", true));
  }
  if (type == "TemplateProcessing") return read_template(json);
  if (type == "Sequence") {
    return make_post_processor_sequence(read_list<PostProcessor>(json, "processors", read_post_processor));
  }
  json.unsupported(str("post-processor '", type, "' (supported: ByteLevel, TemplateProcessing, Sequence)"));
}

std::unique_ptr<Decoder> read_decoder(const JsonView& json) {
  const std::string_view type = type_of(json);
  if (type == "ByteLevel") return make_byte_level_decoder();
  if (type == "ByteFallback") return make_byte_fallback_decoder();
  if (type == "Fuse") return make_fuse_decoder();
  if (type == "Replace") return make_replace_decoder(read_pattern(json.at("pattern")), json.string_or("content", ""));
  if (type == "Strip") {
    const std::string content(json.at("content").string());
    if (content.empty() || utf8_length(content[0]) != content.size()) json.at("content").fail("is not one character");
    return make_strip_decoder(content, read_count(json.at("start")), read_count(json.at("stop")));
  }
  if (type == "Sequence") return make_decoder_sequence(read_list<Decoder>(json, "decoders", read_decoder));
  json.unsupported(str("decoder '", type, "' (supported: ByteLevel, ByteFallback, Fuse, Replace, Strip, Sequence)"));
}

}  // namespace glassformer::text
