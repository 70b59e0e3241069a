// Regular expressions on PCRE2. Patterns are written for Oniguruma with Ruby's syntax; they are translated where the
// two differ, and refused where that can't be done.

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdlib>
#include <optional>

#include "glassformer/base/errors.h"
#include "glassformer/text/pattern.h"
#include "glassformer/text/regex_syntax.h"
#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

constexpr char32_t kNoStandIn = 0;

/// A character that every version of Unicode since 14 puts into `type`, with that length in UTF-8.
char32_t example_of(Category type, std::size_t length) {
  struct Example {
    Category type;
    char32_t three_bytes, four_bytes;
  };
  static constexpr std::array<Example, 13> kExamples = {{{Category::kCn, 0xFDD0, 0x1FFFE},
                                                         {Category::kLu, 0x1E00, 0x10400},
                                                         {Category::kLl, 0x1E01, 0x10428},
                                                         {Category::kLm, 0x1D2C, 0x16B40},
                                                         {Category::kLo, 0x1C4D, 0x10000},
                                                         {Category::kMn, 0x0941, 0x11001},
                                                         {Category::kMc, 0x0903, 0x11000},
                                                         {Category::kNd, 0x0966, 0x11066},
                                                         {Category::kNo, 0x2460, 0x10107},
                                                         {Category::kPd, 0x2010, 0x10EAD},
                                                         {Category::kPo, 0x1B5A, 0x11047},
                                                         {Category::kSm, 0x2200, 0x1D6C1},
                                                         {Category::kSo, 0x2400, 0x1F000}}};
  for (const Example& example : kExamples) {
    if (example.type == type) return length == 3 ? example.three_bytes : example.four_bytes;
  }
  return length == 4 && type == Category::kCf ? 0x110BD : kNoStandIn;
}

/// The characters that came, or changed their category, after Unicode 14: PCRE2 10.42 does not know them.
bool is_newer_than_pcre2(char32_t point) {
  struct Range {
    char32_t first, last;
  };
  static constexpr Range kRanges[] = {
      {0x0897, 0x0897},   {0x0CF3, 0x0CF3},   {0x0ECE, 0x0ECE},   {0x1B4E, 0x1B4F},   {0x1B7F, 0x1B7F},
      {0x1C89, 0x1C8A},   {0x2427, 0x2429},   {0x2FFC, 0x2FFF},   {0x31E4, 0x31E5},   {0x31EF, 0x31EF},
      {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D40, 0x10D8F}, {0x10EC2, 0x10EC4},
      {0x10EFC, 0x10EFF}, {0x1123F, 0x11241}, {0x11380, 0x113E2}, {0x116D0, 0x116E3}, {0x1171E, 0x1171E},
      {0x11B00, 0x11B09}, {0x11BC0, 0x11BF9}, {0x11F00, 0x11F5A}, {0x1342F, 0x1342F}, {0x13439, 0x13455},
      {0x13460, 0x143FA}, {0x16100, 0x16139}, {0x16D40, 0x16D79}, {0x18CFF, 0x18CFF}, {0x1B132, 0x1B132},
      {0x1B155, 0x1B155}, {0x1CC00, 0x1CCF9}, {0x1CD00, 0x1CEB3}, {0x1D2C0, 0x1D2D3}, {0x1DF25, 0x1DF2A},
      {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E4D0, 0x1E4F9}, {0x1E5D0, 0x1E5FF}, {0x1F6DC, 0x1F6DC},
      {0x1F774, 0x1F77F}, {0x1F7D9, 0x1F7D9}, {0x1F8B2, 0x1F8C1}, {0x1FA75, 0x1FA77}, {0x1FA87, 0x1FA8F},
      {0x1FAAD, 0x1FAAF}, {0x1FABB, 0x1FABF}, {0x1FAC6, 0x1FAC6}, {0x1FACE, 0x1FACF}, {0x1FADA, 0x1FADF},
      {0x1FAE8, 0x1FAE9}, {0x1FAF7, 0x1FAF8}, {0x1FBCB, 0x1FBEF}, {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D},
      {0x31350, 0x323AF}};
  for (const Range& range : kRanges) {
    if (point <= range.last) return point >= range.first;
  }
  return false;
}

/// The version of Unicode that PCRE2 was built with.
int pcre2_unicode_version() {
  static const int version = [] {
    std::array<char, 32> text{};
    return pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, text.data()) > 0 ? std::atoi(text.data()) : 0;
  }();
  return version;
}

/// What PCRE2 is shown in place of `point`, so that it sees the categories that Oniguruma sees (of Unicode 16),
/// whichever version it has itself; `kNoStandIn` where the character will do.
char32_t stand_in(char32_t point) {
  constexpr int kOniguruma = 16;
  if (point == 0x180E) return 0x200B;  // PCRE2 counts it as white space, for Perl's sake.
  if (point < 0x800) return kNoStandIn;
  const Category type = category(point);
  const int version = pcre2_unicode_version();
  const bool differs =
      version > kOniguruma ? type == Category::kCn : version < kOniguruma && is_newer_than_pcre2(point);
  if (!differs) return kNoStandIn;
  if (point == 0x1B132) return 0x1B150;  // These keep their script: Hiragana, Katakana, Han.
  if (point == 0x1B155) return 0x1B164;
  if (point == 0x2B739 || (point >= 0x2EBF0 && point <= 0x2EE5D) || (point >= 0x31350 && point <= 0x323AF))
    return 0x20000;
  return example_of(type, point < 0x10000 ? 3 : 4);
}

/// A copy of `text` with the stand-ins in, or nothing where it has none.
std::optional<std::string> with_stand_ins(std::string_view text) {
  std::optional<std::string> copy;
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0xE0) {
      ++at;
      continue;
    }
    const std::size_t begin = at;
    const char32_t other = stand_in(next_point(text, at));
    if (other == kNoStandIn) continue;
    if (!copy) copy.emplace(text);
    std::string bytes;
    append_utf8(bytes, other);
    copy->replace(begin, bytes.size(), bytes);
  }
  return copy;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

class Regex : public Pattern {
 public:
  explicit Regex(const std::string& expression) : expression_(expression) {
    const std::string translated = translate_regex(expression);
    int error = 0;
    PCRE2_SIZE place = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &place, nullptr));
    if (!code_) {
      throw UnsupportedError(str("regular expression '", expression, "': ", message_of(error), " at byte ", place));
    }
    jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
  }

  void find(std::string_view text, std::vector<Match>& out) const override {
    if (text.empty()) return;
    const std::optional<std::string> shown = with_stand_ins(text);
    const std::string_view subject = shown ? std::string_view(*shown) : text;
    const std::unique_ptr<pcre2_match_data, FreeMatch> data(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (!data) throw std::bad_alloc();
    std::size_t at = 0, covered = 0;
    std::optional<std::size_t> last_end;
    while (at <= subject.size() && match(subject, at, data.get())) {
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
      const std::size_t begin = range[0], end = range[1];
      if (begin == end && last_end == end) {
        at += at < subject.size() ? utf8_length(subject[at]) : 1;
        continue;
      }
      if (covered < begin) out.push_back({covered, begin, false});
      out.push_back({begin, end, true});
      covered = end;
      at = end;
      last_end = end;
    }
    if (covered < text.size()) out.push_back({covered, text.size(), false});
  }

 private:
  bool match(std::string_view subject, std::size_t at, pcre2_match_data* data) const {
    int found = run(subject, at, data, nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
      const std::unique_ptr<pcre2_jit_stack, FreeStack> stack(pcre2_jit_stack_create(1 << 16, 1 << 28, nullptr));
      if (!context || !stack) throw std::bad_alloc();
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      found = run(subject, at, data, context.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) {
      throw InputError(
          str("the tokenizer's regular expression '", expression_, "' failed on this text: ", message_of(found)));
    }
    return true;
  }

  int run(std::string_view subject, std::size_t at, pcre2_match_data* data, pcre2_match_context* context) const {
    const auto* bytes = reinterpret_cast<PCRE2_SPTR>(subject.data());
    return jit_ ? pcre2_jit_match(code_.get(), bytes, subject.size(), at, 0, data, context)
                : pcre2_match(code_.get(), bytes, subject.size(), at, PCRE2_NO_UTF_CHECK, data, context);
  }

  std::string expression_;
  std::unique_ptr<pcre2_code, FreeCode> code_;
  bool jit_ = false;
};

class Literal : public Pattern {
 public:
  explicit Literal(std::string text) : text_(std::move(text)) {}
  void find(std::string_view text, std::vector<Match>& out) const override {
    std::size_t covered = 0;
    for (std::size_t at = text.find(text_); at != std::string_view::npos; at = text.find(text_, covered)) {
      if (covered < at) out.push_back({covered, at, false});
      covered = at + text_.size();
      out.push_back({at, covered, true});
    }
    if (covered < text.size()) out.push_back({covered, text.size(), false});
  }

 private:
  std::string text_;
};

}  // namespace

std::unique_ptr<Pattern> make_general_regex(const std::string& expression) {
  return std::make_unique<Regex>(expression);
}

std::unique_ptr<Pattern> make_regex(const std::string& expression) {
  if (auto known = known_pattern(expression)) return known;
  return make_general_regex(expression);
}

std::unique_ptr<Pattern> make_literal(const std::string& text) {
  if (text.empty()) return make_general_regex("(?:)");
  return std::make_unique<Literal>(text);
}

}  // namespace glassformer::text
