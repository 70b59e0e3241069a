#pragma once
// UTF-8 and the character properties that tokenizers split by.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glassformer::text {

/// The general categories, in the order of unicode_data.cpp.
enum class Category : std::uint8_t {
  kCn,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCo
};

extern const std::uint32_t kCategoryRuns[];
extern const std::size_t kCategoryRunCount;

/// What the common splitting patterns ask of a character.
enum Kind : std::uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3, kMark = 4 };

/// One byte a code point: the category in the low five bits, the kind in the high three. Built on first use.
const std::uint8_t* character_table();

inline Category category(char32_t point) { return static_cast<Category>(character_table()[point] & 31); }
inline Kind kind(char32_t point) { return static_cast<Kind>(character_table()[point] >> 5); }

bool is_space(char32_t point);        // White_Space
bool is_word(char32_t point);         // `\w` of `tokenizers` in added tokens and in the pre-tokenizer Whitespace.
bool is_numeric(char32_t point);      // What the pre-tokenizer Digits takes; a newer Unicode than the patterns have.
bool is_punctuation(char32_t point);  // What the pre-tokenizer Punctuation takes; Unicode 8.
bool is_mark(char32_t point);         // What the normalizer StripAccents drops; Unicode 9.

inline bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

/// The length of the valid UTF-8 character that begins with `lead`.
inline std::size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/// The character at `at` of a valid UTF-8 text; moves `at` behind it.
inline char32_t next_point(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t offset) { return static_cast<unsigned char>(text[at + offset]); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return ++at, lead;
  char32_t point = 0;
  if (lead < 0xE0) {
    point = (lead & 0x1F) << 6 | (byte(1) & 0x3Fu);
    at += 2;
  } else if (lead < 0xF0) {
    point = (lead & 0x0F) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    at += 3;
  } else {
    point = (lead & 0x07) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    at += 4;
  }
  return point;
}

/// The character that ends at `end` (which is behind at least one character of a valid text).
inline char32_t previous_point(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while (is_continuation(text[at])) --at;
  return next_point(text, at);
}

void append_utf8(std::string& out, char32_t point);
std::u32string decode_utf8(std::string_view text);

/// The number of leading bytes of `text` that are valid UTF-8.
std::size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

/// `text` with U+FFFD for each maximal part that is no UTF-8, as Unicode recommends and Rust and Python do.
std::string replace_invalid_utf8(std::string_view text);

/// The character that stands for `byte` in byte-level vocabularies ("Ġ" for a space), and back (-1: none).
char32_t byte_to_character(std::uint8_t byte);
int character_to_byte(char32_t point);

}  // namespace glassformer::text
