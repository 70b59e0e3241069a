#include "glassformer/text/tokenizer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "glassformer/base/errors.h"
#include "glassformer/io/gguf.h"
#include "glassformer/text/pattern.h"
#include "glassformer/text/unicode.h"

using namespace glassformer;
using nlohmann::json;

namespace {

std::string byte_character(int byte) {
  std::string out;
  text::append_utf8(out, text::byte_to_character(static_cast<std::uint8_t>(byte)));
  return out;
}

/// GPT-2's kind of tokenizer: the 256 bytes, the given merges, then <|end|> as a special token.
json byte_level_json(const std::vector<std::pair<std::string, std::string>>& merges) {
  json vocabulary = json::object(), list = json::array();
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_character(byte)] = byte;
  for (const auto& [first, second] : merges) {
    const int next = static_cast<int>(vocabulary.size());
    if (!vocabulary.contains(first + second)) vocabulary[first + second] = next;
    list.push_back(first + " " + second);
  }
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}};
  const json end = {{"id", vocabulary.size()}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}};
  return {{"added_tokens", json::array({end})},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", list}}}};
}

const std::vector<std::pair<std::string, std::string>> kMerges = {{"t", "h"}, {"th", "e"}, {"Ġ", "the"},
                                                                  {"Ġ", "c"}, {"a", "t"},  {"Ġc", "at"}};

std::shared_ptr<const Tokenizer> load(const json& description, const std::string& config = {}) {
  return Tokenizer::from_json(description.dump(), "tokenizer.json", config);
}

std::string random_text(std::mt19937& random, std::size_t characters) {
  static const std::vector<std::u32string> kAlphabets = {
      U"abcXYZ'sStTrRlLmMvVeEdD019 \t\n\r",
      U"\u00e9\u0301\u017f\u00a0\u1680\u180e\u2003\u2028\u3000\u0085 \n'\U0001F600\u200d\ufe0f",
      U"\u4e2d\u6587\u0939\u093f\u0660\u2167\u00b2\U0001D7CE_-. "};
  std::string out;
  const std::u32string& alphabet = kAlphabets[random() % kAlphabets.size()];
  for (std::size_t i = 0; i < characters; ++i) {
    char32_t point = alphabet[random() % alphabet.size()];
    if (random() % 16 == 0) point = static_cast<char32_t>(random() % 0x110000);
    if (point >= 0xD800 && point < 0xE000) point = U' ';
    text::append_utf8(out, point);
  }
  return out;
}

}  // namespace

TEST_CASE("bytes, merges, special tokens, offsets, and back") {
  const auto tokenizer = load(byte_level_json(kMerges), R"({"eos_token": "<|end|>", "bos_token": {"content": "a"}})");
  const std::string input = "the cat \xF0\x9F\x98\x80<|end|>the";
  const Encoding encoding = tokenizer->encode_with_offsets(input);
  CHECK(encoding.tokens == std::vector<std::string>{"the", "Ġcat", "Ġ", byte_character(0xF0), byte_character(0x9F),
                                                    byte_character(0x98), byte_character(0x80), "<|end|>", "the"});
  CHECK(encoding.offsets == std::vector<std::pair<int64_t, int64_t>>{
                                {0, 3}, {3, 7}, {7, 8}, {8, 9}, {8, 9}, {8, 9}, {8, 9}, {9, 16}, {16, 19}});
  CHECK(tokenizer->encode(input) == encoding.ids);
  CHECK(tokenizer->decode(encoding.ids) == input);
  CHECK(tokenizer->decode(encoding.ids, {true}) == "the cat \xF0\x9F\x98\x80the");
  CHECK(tokenizer->decode_each(encoding.ids)[1] == " cat");
  CHECK(tokenizer->vocabulary_size() == 263);
  CHECK(tokenizer->eos_id() == 262);
  CHECK(tokenizer->bos_id() == 'a' - '!' + 0x21);
  CHECK_FALSE(tokenizer->pad_id());
  CHECK(tokenizer->is_special(262));
  CHECK_FALSE(tokenizer->is_special(1));
  CHECK(tokenizer->encode("").empty());
  const std::vector<int64_t> outside = {263};
  CHECK_THROWS_AS(tokenizer->decode(outside), InputError);
  CHECK_THROWS_AS(tokenizer->token(-1), InputError);
}

TEST_CASE("bytes that are no UTF-8 count as U+FFFD") {
  const auto tokenizer = load(byte_level_json(kMerges));
  // Cut off, overlong, a surrogate, beyond the last code point: one mark for each maximal part.
  CHECK(tokenizer->decode(tokenizer->encode("a\xE2\x82 b")) == "a\xEF\xBF\xBD b");
  CHECK(tokenizer->decode(tokenizer->encode("\xC0\xAF")) == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(tokenizer->decode(tokenizer->encode("\xED\xA0\x80")) == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(tokenizer->decode(tokenizer->encode("\xF4\x90\x80\x80")).size() == 12);
  const std::vector<int64_t> half = {0xE2};
  CHECK(tokenizer->decode(half) == "\xEF\xBF\xBD");
}

TEST_CASE("merging follows the ranks, in short words and in long ones") {
  std::mt19937 random(1);
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<std::string> tokens = {"a", "b", "c", "d"};
  while (merges.size() < 200) {
    const std::string first = tokens[random() % tokens.size()], second = tokens[random() % tokens.size()];
    if (first.size() + second.size() > 8 || std::count(tokens.begin(), tokens.end(), first + second)) continue;
    merges.emplace_back(first, second);
    tokens.push_back(first + second);
  }
  const auto tokenizer = load(byte_level_json(merges));
  for (int round = 0; round < 600; ++round) {
    std::vector<std::string> parts(1 + random() % (round % 3 == 0 ? 300 : 40));
    std::string word;
    for (std::string& part : parts) word += part = std::string(1, static_cast<char>('a' + random() % 4));
    for (bool merged = true; merged;) {
      merged = false;
      std::size_t best = merges.size(), place = 0;
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto pair = std::find(merges.begin(), merges.end(), std::make_pair(parts[i], parts[i + 1]));
        const auto rank = static_cast<std::size_t>(pair - merges.begin());
        if (rank < best) best = rank, place = i, merged = true;
      }
      if (!merged) break;
      parts[place] += parts[place + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
    CHECK(tokenizer->encode_with_offsets(word).tokens == parts);
    CHECK(tokenizer->encode(word).size() == parts.size());  // Now from the cache.
  }
}

TEST_CASE("a megabyte in one word is merged in no time") {
  const auto tokenizer = load(byte_level_json({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}));
  CHECK(tokenizer->encode(std::string(1 << 20, 'a')).size() == (1 << 20) / 8);
}

TEST_CASE("the matchers by hand split as the regular expressions do") {
  std::mt19937 random(2);
  for (const char* expression : {text::kGpt2Pattern, text::kLlama3Pattern, text::kQwen2Pattern, text::kQwen35Pattern}) {
    const auto by_hand = text::known_pattern(expression), general = text::make_general_regex(expression);
    REQUIRE(by_hand);
    const auto check = [&](const std::string& input) {
      std::vector<text::Match> quick, slow;
      by_hand->find(input, quick);
      general->find(input, slow);
      const bool equal = std::equal(quick.begin(), quick.end(), slow.begin(), slow.end(),
                                    [](const text::Match& a, const text::Match& b) {
                                      return a.begin == b.begin && a.end == b.end && a.matched == b.matched;
                                    });
      CHECK_MESSAGE(equal, expression, " on ", input);
    };
    for (int round = 0; round < 20000; ++round) check(random_text(random, 1 + random() % 24));
    for (const char* around : {"a%1", " %%a", "%\n", "'%", "1%"}) {
      std::string all;
      for (char32_t point = 0; point < 0x110000; ++point) {
        if (point == 0xD800) point = 0xE000;
        for (const char* c = around; *c; ++c) *c == '%' ? text::append_utf8(all, point) : all.push_back(*c);
      }
      check(all);
    }
  }
}

TEST_CASE("regular expressions that would mean something else are refused by name") {
  for (const char* expression : {"a\\b", "(?x)a", "[a[b]]", "[a&&b]", "(a)\\1", "(?i:ss)", "(?i:\u00e9)", "\\p{Punct}",
                                 "a{,3}", "\\R", "(", ")", "[a", "*a", "a**", "\\", "a{2}?", "\\xff", "(?<n>a)"}) {
    CHECK_THROWS_AS(text::make_regex(expression), UnsupportedError);
  }
}

TEST_CASE("what is missing is named: kinds of models, parts, options") {
  const auto message = [](const json& description) -> std::string {
    try {
      load(description);
    } catch (const UnsupportedError& error) {
      return error.what();
    }
    return "no error";
  };
  json description = byte_level_json(kMerges);
  description["model"] = {{"type", "Unigram"}, {"vocab", json::array()}};
  CHECK(message(description).find("Unigram") != std::string::npos);
  description["model"] = {{"type", "WordPiece"}, {"vocab", json::object()}};
  CHECK(message(description).find("WordPiece") != std::string::npos);
  description = byte_level_json(kMerges);
  description["pre_tokenizer"] = {{"type", "Metaspace"}};
  CHECK(message(description).find("tokenizer.json: pre_tokenizer: pre-tokenizer 'Metaspace'") == 0);
  description = byte_level_json(kMerges);
  description["model"]["dropout"] = 0.1;
  CHECK(message(description).find("dropout") != std::string::npos);
  description["model"]["dropout"] = 0.0;
  CHECK(message(description) == "no error");
}

TEST_CASE("a damaged tokenizer.json raises FileError, and never more") {
  json description = byte_level_json(kMerges);
  description["normalizer"] = json::parse(
      R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "y"},
          {"type": "Strip", "strip_left": true, "strip_right": false}]})");
  description["pre_tokenizer"] = json::parse(
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
          {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\w+"}, "behavior": "Isolated", "invert": false},
          {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}]})");
  description["post_processor"] = json::parse(
      R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
          "pair": [], "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [262], "tokens": ["<|end|>"]}}})");
  const std::string good = description.dump(), config = R"({"eos_token": "<|end|>", "chat_template": "{{ 1 }}"})";
  const std::vector<std::string> pieces = {
      "\"",    "{",       "}",    "[",        "]",         ",",   ":",   "null", "true", "-1", "99999999999999999999",
      "1e400", "\\ud800", "\xff", "\"type\"", "ByteLevel", "BPE", "\xC3"};
  std::mt19937 random(3);
  int loaded = 0, refused = 0;
  const auto attempt = [&](const std::string& damaged, const std::string& damaged_config) {
    try {
      const auto tokenizer = Tokenizer::from_json(damaged, "folder/tokenizer.json", damaged_config);
      const std::vector<int64_t> ids = tokenizer->encode("The cat\xCC\x81 xx 12345 <|end|>");
      try {
        tokenizer->decode(ids);
      } catch (const InputError&) {  // A template may name an id that the vocabulary lacks.
      }
      ++loaded;
    } catch (const FileError& error) {
      CHECK(std::string(error.what()).rfind("folder/tokenizer", 0) == 0);
      ++refused;
    } catch (const UnsupportedError&) {
      ++refused;
    } catch (const InputError&) {
      ++refused;
    }
  };
  for (int round = 0; round < 4000; ++round) {
    std::string damaged = good, damaged_config = config;
    // Half of the damage goes into the short part behind the vocabulary, where the structure is.
    std::string& target = round % 8 == 7 ? damaged_config : damaged;
    const std::size_t structure = good.find("\"normalizer\"");
    for (std::size_t count = 1 + random() % 3; count > 0; --count) {
      const std::size_t low = round % 2 && &target == &damaged ? std::min(structure, target.size() - 1) : 0;
      const std::size_t at = low + random() % std::max<std::size_t>(1, target.size() - low);
      switch (random() % 4) {
        case 0:
          target[at] = static_cast<char>(random());
          break;
        case 1:
          target.erase(at, 1 + random() % 20);
          break;
        case 2:
          target.insert(at, pieces[random() % pieces.size()]);
          break;
        default:
          target.resize(at + 1);
      }
    }
    attempt(damaged, damaged_config);
  }
  for (const char* half : {"\\ud800", "\\udc00", "\\ud800\\u0041", "\\udfff\\ud800"}) {
    const int before = refused;
    attempt(std::string(good).replace(good.find("\"!\""), 3, str("\"", half, "\"")), "");
    attempt(good, str("{\"chat_template\": \"", half, "\"}"));
    CHECK(refused == before + 2);
  }
  attempt("", "");
  attempt("[]", "");
  attempt(std::string(100000, '['), "");
  attempt(good, "[]");
  CHECK(loaded > 100);
  CHECK(refused > 2000);
}

TEST_CASE("values of another kind at any place raise errors, and never more") {
  const json good = byte_level_json({{"t", "h"}});
  const std::vector<json> others = {nullptr,
                                    true,
                                    -1,
                                    1.5,
                                    "x",
                                    json::array(),
                                    json::object(),
                                    json::array({1}),
                                    std::numeric_limits<std::uint64_t>::max()};
  int tried = 0;
  const json flat = good.flatten();
  for (const auto& [pointer, unused] : flat.items()) {
    if (pointer.find("/vocab/") != std::string::npos && ++tried % 16 != 0) continue;
    for (json::json_pointer place(pointer); !place.empty(); place.pop_back()) {
      for (const json& other : others) {
        json changed = good;
        changed[place] = other;
        try {
          load(changed)->encode("the cat <|end|>");
        } catch (const Error&) {
        }
      }
    }
  }
}

namespace {

/// A GGUF in memory; only its metadata counts here.
GgufFile gguf_of(const json& description, const std::string& pre) {
  const auto path = std::filesystem::temp_directory_path() / "glassformer_tokenizer_test.gguf";
  std::ofstream(path) << "GGUF";
  GgufFile file;
  file.file = MappedFile::open(path.string());
  std::vector<std::string> tokens(description["model"]["vocab"].size() + 1), merges;
  for (const auto& [token, id] : description["model"]["vocab"].items()) tokens[id.get<std::size_t>()] = token;
  tokens.back() = "<|end|>";
  for (const auto& merge : description["model"]["merges"]) merges.push_back(merge.get<std::string>());
  std::vector<int64_t> types(tokens.size(), 1);
  types.back() = 3;
  file.metadata["tokenizer.ggml.model"] = std::string("gpt2");
  file.metadata["tokenizer.ggml.pre"] = pre;
  file.metadata["tokenizer.ggml.tokens"] = tokens;
  file.metadata["tokenizer.ggml.merges"] = merges;
  file.metadata["tokenizer.ggml.token_type"] = types;
  file.metadata["tokenizer.ggml.bos_token_id"] = static_cast<int64_t>(tokens.size()) - 1;
  return file;
}

}  // namespace

TEST_CASE("a GGUF's metadata make the tokenizer that tokenizer.json would") {
  const json description = byte_level_json(kMerges);
  const auto expected = load(description);
  const auto tokenizer = Tokenizer::from_gguf(gguf_of(description, "gpt-2"));
  const std::string input = "the cat 12 <|end|> the\n";
  CHECK(tokenizer->encode(input) == expected->encode(input));
  CHECK(tokenizer->decode(expected->encode(input)) == input);
  CHECK(tokenizer->bos_id() == 262);
  CHECK(tokenizer->is_special(262));

  CHECK(Tokenizer::from_gguf(gguf_of(description, "llama-bpe"))->encode("the").front() == 262);  // Adds a BOS.
  GgufFile file = gguf_of(description, "llama-bpe");
  file.metadata["tokenizer.ggml.add_bos_token"] = false;
  CHECK(Tokenizer::from_gguf(file)->encode("the").size() == 1);
  CHECK(Tokenizer::from_gguf(file)->encode("1234").size() == 4);
}

TEST_CASE("a GGUF whose tokenizer is damaged, or of another kind, raises") {
  const json description = byte_level_json(kMerges);
  CHECK_THROWS_AS(Tokenizer::from_gguf(gguf_of(description, "unheard-of")), UnsupportedError);
  GgufFile file = gguf_of(description, "gpt-2");
  file.metadata["tokenizer.ggml.model"] = std::string("llama");
  CHECK_THROWS_AS(Tokenizer::from_gguf(file), UnsupportedError);
  file = gguf_of(description, "gpt-2");
  file.metadata["tokenizer.ggml.bos_token_id"] = int64_t{263};
  CHECK_THROWS_AS(Tokenizer::from_gguf(file), FileError);
  file = gguf_of(description, "gpt-2");
  file.metadata["tokenizer.ggml.token_type"] = std::vector<int64_t>{1, 2};
  CHECK_THROWS_AS(Tokenizer::from_gguf(file), FileError);
  for (const char* merge : {"a", "", "a  b", "q zz", "a b c"}) {
    file = gguf_of(description, "gpt-2");
    file.metadata["tokenizer.ggml.merges"] = std::vector<std::string>{merge};
    CHECK_THROWS_AS(Tokenizer::from_gguf(file), FileError);
  }
  file.metadata.erase("tokenizer.ggml.merges");
  CHECK_THROWS_AS(Tokenizer::from_gguf(file), FileError);
}

TEST_CASE("threads share a tokenizer") {
  const auto tokenizer = load(byte_level_json(kMerges));
  std::mt19937 random(4);
  std::vector<std::string> texts;
  std::vector<std::vector<int64_t>> expected;
  for (int i = 0; i < 500; ++i) {
    texts.push_back(random_text(random, 60) + " the cat");
    expected.push_back(tokenizer->encode(texts.back()));
  }
  std::vector<std::thread> threads;
  std::array<int, 4> wrong{};
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < texts.size(); ++i) {
        const std::size_t at = (i * 7 + t * 131) % texts.size();
        wrong[t] += tokenizer->encode(texts[at]) != expected[at];
        wrong[t] += tokenizer->decode(expected[at]) != texts[at];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::array<int, 4>{});
}
