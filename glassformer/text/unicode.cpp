#include "glassformer/text/unicode.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <array>
#include <memory>

namespace glassformer::text {
namespace {

constexpr char32_t kPoints = 0x110000;

Kind kind_of(Category category) {
  switch (category) {
    case Category::kLu:
    case Category::kLl:
    case Category::kLt:
    case Category::kLm:
    case Category::kLo:
      return kLetter;
    case Category::kNd:
    case Category::kNl:
    case Category::kNo:
      return kNumber;
    case Category::kMn:
    case Category::kMc:
    case Category::kMe:
      return kMark;
    case Category::kZs:
    case Category::kZl:
    case Category::kZp:
      return kSpace;
    default:
      return kOther;
  }
}

std::unique_ptr<std::uint8_t[]> build_table() {
  auto table = std::make_unique<std::uint8_t[]>(kPoints);
  for (std::size_t run = 0; run < kCategoryRunCount; ++run) {
    const std::uint32_t first = kCategoryRuns[run] >> 8;
    const std::uint32_t last = run + 1 < kCategoryRunCount ? kCategoryRuns[run + 1] >> 8 : kPoints;
    const auto type = static_cast<Category>(kCategoryRuns[run] & 0xFF);
    const auto entry = static_cast<std::uint8_t>(static_cast<int>(type) | kind_of(type) << 5);
    std::fill(table.get() + first, table.get() + last, entry);
  }
  for (const char32_t point : {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85}) {
    table[point] = static_cast<std::uint8_t>((table[point] & 31) | kSpace << 5);
  }
  return table;
}

/// Whether the character existed in that version of Unicode; properties of existing characters hardly ever change, so
/// this is what tells an old property from ICU's newer one.
bool existed_in(char32_t point, int version) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(point), age);
  return age[0] != 0 && age[0] <= version;
}

bool within(char32_t point, char32_t first, char32_t last) { return point >= first && point <= last; }

}  // namespace

const std::uint8_t* character_table() {
  static const std::unique_ptr<std::uint8_t[]> table = build_table();
  return table.get();
}

bool is_space(char32_t point) { return kind(point) == kSpace; }

bool is_word(char32_t point) {
  if (point < 0x80) return (point | 0x20) - 'a' < 26u || point - '0' < 10u || point == '_';
  const Category type = category(point);
  return kind(point) == kLetter || kind(point) == kMark || type == Category::kNd || type == Category::kNl ||
         type == Category::kPc || within(point, 0x200C, 0x200D) || within(point, 0x24B6, 0x24E9) ||
         within(point, 0x1F130, 0x1F149) || within(point, 0x1F150, 0x1F169) || within(point, 0x1F170, 0x1F189);
}

bool is_numeric(char32_t point) {
  return kind(point) == kNumber || within(point, 0x11DE0, 0x11DE9) || within(point, 0x16FF4, 0x16FF6);
}

bool is_punctuation(char32_t point) {
  if (point < 0x80) {
    return within(point, '!', '/') || within(point, ':', '@') || within(point, '[', '`') || within(point, '{', '~');
  }
  const Category type = category(point);
  const bool now = type >= Category::kPc && type <= Category::kPo;
  return (now && existed_in(point, 8)) || point == 0x166D || point == 0x111C9;
}

bool is_mark(char32_t point) {
  return (kind(point) == kMark && existed_in(point, 9) && point != 0x111C9) || within(point, 0x1CF2, 0x1CF3);
}

void append_utf8(std::string& out, char32_t point) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xC0 | point >> 6);
    put(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    put(0xE0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  } else {
    put(0xF0 | point >> 18);
    put(0x80 | (point >> 12 & 0x3F));
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  }
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string points;
  points.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) points.push_back(next_point(text, at));
  return points;
}

namespace {

/// The length of the character at `at`, or 0; `bad` gets the length of the maximal part that could have begun one.
std::size_t character_length(std::string_view text, std::size_t at, std::size_t& bad) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(at);
  bad = 1;
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < length; ++i, ++bad) {
    if (at + i >= text.size()) return 0;
    const unsigned next = byte(at + i);
    if (next < (i == 1 ? low : 0x80u) || next > (i == 1 ? high : 0xBFu)) return 0;
  }
  return length;
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t at = 0, bad = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const std::size_t length = character_length(text, at, bad);
    if (length == 0) break;
    at += length;
  }
  return at;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t good = valid_utf8_prefix(text.substr(at));
    out.append(text.substr(at, good));
    at += good;
    if (at == text.size()) break;
    std::size_t bad = 0;
    character_length(text, at, bad);
    out.append("\xEF\xBF\xBD");
    at += bad;
  }
  return out;
}

namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> characters{};
  std::array<int, 324> bytes{};

  ByteAlphabet() {
    bytes.fill(-1);
    char32_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = within(byte, '!', '~') || within(byte, 0xA1, 0xAC) || within(byte, 0xAE, 0xFF);
      characters[byte] = printable ? byte : next++;
      bytes[characters[byte]] = static_cast<int>(byte);
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

char32_t byte_to_character(std::uint8_t byte) { return byte_alphabet().characters[byte]; }

int character_to_byte(char32_t point) { return point < 324 ? byte_alphabet().bytes[point] : -1; }

}  // namespace glassformer::text
