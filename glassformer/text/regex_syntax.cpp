#include "glassformer/text/regex_syntax.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "glassformer/base/errors.h"

namespace glassformer::text {
namespace {

/// What `\w` is for Oniguruma, as the inside of a class: PCRE2 leaves marks and a few others out.
constexpr std::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
/// Superscripts and fractions of Latin-1, which it counts as words outside of classes only.
constexpr std::string_view kWordOutside = R"(\xB2\xB3\xB9\xBC-\xBE)";

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  explicit Translator(const std::string& expression) : in_(expression) {}

  std::string run() {
    while (at_ < in_.size()) step();
    if (!groups_.empty()) refuse("an open group");
    return out_;
  }

 private:
  struct Group {
    std::size_t begin;  // In `out_`.
    bool any_case;      // Outside of it.
  };

  [[noreturn]] void refuse(std::string_view what) const {
    throw UnsupportedError(str("regular expression '", in_, "': ", what, " at byte ", at_,
                               " is not supported (groups, classes, \\p{...}, \\s \\d \\w, look-around and quantifiers "
                               "are)"));
  }

  char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool follows(std::string_view text) const { return std::string_view(in_).substr(at_).starts_with(text); }

  void step() {
    const char c = peek();
    switch (c) {
      case '\\':
        atom_ = out_.size();
        previous_literal_ = '\0';
        escape(false);
        return;
      case '[':
        atom_ = out_.size();
        previous_literal_ = '\0';
        character_class();
        return;
      case '(':
        open_group();
        return;
      case ')':
        if (groups_.empty()) refuse("an unmatched ')'");
        atom_ = groups_.back().begin;
        any_case_ = groups_.back().any_case;
        groups_.pop_back();
        previous_literal_ = '\0';
        copy(1);
        return;
      case '*':
      case '+':
      case '?':
        quantifier(1);
        return;
      case '{':
        interval();
        return;
      default:
        literal(c);
    }
  }

  void copy(std::size_t count) {
    out_.append(in_, at_, count);
    at_ += count;
  }

  void literal(char c) {
    atom_ = out_.size();
    if (any_case_) {
      // Oniguruma also folds pairs of letters into one character ("ss" and U+00DF), which PCRE2 does not.
      static constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "st", "ff", "fi", "fl"};
      const std::string pair = {static_cast<char>(previous_literal_ | 0x20), static_cast<char>(c | 0x20)};
      for (const std::string_view folded : kFoldedPairs) {
        if (pair == folded) refuse("a pair of letters that case folding joins");
      }
      if (static_cast<unsigned char>(c) >= 0x80) refuse("a letter beyond ASCII under (?i)");
      previous_literal_ = is_ascii_letter(c) ? c : '\0';
    }
    if (static_cast<unsigned char>(c) >= 0x80) {
      std::size_t length = 1;
      while ((static_cast<unsigned char>(peek(length)) & 0xC0) == 0x80) ++length;
      copy(length);
      return;
    }
    copy(1);
  }

  void open_group() {
    const std::size_t begin = out_.size();
    const bool outside = any_case_;
    previous_literal_ = '\0';
    static constexpr std::array<std::string_view, 6> kPlain = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (follows("(?i:")) {
      any_case_ = true;
      copy(4);
    } else if (follows("(?-i:")) {
      any_case_ = false;
      copy(5);
    } else if (peek(1) == '?') {
      std::size_t length = 0;
      for (const std::string_view plain : kPlain) {
        if (follows(plain)) length = plain.size();
      }
      if (length == 0) refuse("this kind of group");
      copy(length);
    } else {
      // Nothing refers to groups by number, so a capture is only a cost.
      out_ += "(?:";
      at_ += 1;
    }
    groups_.push_back({begin, outside});
  }

  void quantifier(std::size_t length) {
    if (out_.empty()) refuse("a quantifier of nothing");
    copy(length);
    if (peek() == '?' || peek() == '+') copy(1);
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') refuse("a quantifier of a quantifier");
    previous_literal_ = '\0';
  }

  void interval() {
    std::size_t length = 1, digits = 0;
    for (; peek(length) >= '0' && peek(length) <= '9'; ++length) ++digits;
    if (digits == 0) refuse("'{' without a number");
    const bool exact = peek(length) == '}';
    if (!exact) {
      if (peek(length) != ',') refuse("an odd interval");
      ++length;
      while (peek(length) >= '0' && peek(length) <= '9') ++length;
      if (peek(length) != '}') refuse("an odd interval");
    }
    ++length;
    if (exact && peek(length) == '?') refuse("'?' behind an exact count");
    if (peek(length) == '+') {
      // For Ruby `x{1,3}+` repeats, it does not make the interval possessive.
      out_.insert(atom_, "(?:");
      copy(length);
      out_ += ")+";
      ++at_;
      if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') refuse("a quantifier of a quantifier");
      return;
    }
    copy(length);
    if (peek() == '?') copy(1);
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') refuse("a quantifier of a quantifier");
  }

  void character_class() {
    copy(1);
    if (peek() == '^') copy(1);
    if (peek() == ']') refuse("']' at the beginning of a class");
    while (at_ < in_.size() && peek() != ']') {
      if (peek() == '[') refuse("a class within a class");
      if (follows("&&")) refuse("an intersection of classes");
      if (peek() == '\\') {
        escape(true);
      } else {
        if (any_case_ && static_cast<unsigned char>(peek()) >= 0x80) refuse("a letter beyond ASCII under (?i)");
        copy(1);
      }
    }
    if (at_ >= in_.size()) refuse("an open class");
    copy(1);
  }

  void escape(bool in_class) {
    const char c = peek(1);
    switch (c) {
      case 'p':
      case 'P':
        property();
        return;
      case 's':
      case 'S':
      case 'd':
      case 'D':
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        copy(2);
        return;
      case 'v':
        out_ += "\\x0B";
        at_ += 2;
        return;
      case 'w':
      case 'W':
        if (in_class && c == 'W') refuse("\\W in a class");
        out_ += in_class ? std::string(kWord) : str(c == 'W' ? "[^" : "[", kWord, kWordOutside, "]");
        at_ += 2;
        return;
      case 'h':
        out_ += in_class ? "0-9a-fA-F" : "[0-9a-fA-F]";
        at_ += 2;
        return;
      case 'A':
      case 'z':
        if (in_class) refuse("an anchor in a class");
        copy(2);
        return;
      case 'x':
      case 'u':
        code_point();
        return;
      default:
        if (is_ascii_letter(c) || (c >= '0' && c <= '9') || c == '\0') refuse(str("'\\", c, "'"));
        if (static_cast<unsigned char>(c) >= 0x80) refuse("an escaped character beyond ASCII");
        copy(2);
    }
  }

  void property() {
    if (peek(2) != '{') refuse("\\p without braces");
    const std::size_t close = in_.find('}', at_);
    if (close == std::string::npos) refuse("\\p without an end");
    std::string_view name = std::string_view(in_).substr(at_ + 3, close - at_ - 3);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    constexpr std::string_view kCategories = "LMNPSZC";
    // Scripts that got characters after Unicode 14, which PCRE2 may have, are left out, but for the stand-ins' own.
    static constexpr std::array<std::string_view, 7> kScripts = {"Han",   "Hiragana", "Katakana", "Hangul",
                                                                 "Greek", "Hebrew",   "Thai"};
    const bool is_category = name.size() <= 2 && !name.empty() && kCategories.find(name[0]) != kCategories.npos;
    const bool is_script = std::find(kScripts.begin(), kScripts.end(), name) != kScripts.end();
    if (!is_category && !is_script) refuse(str("\\p{", name, "}"));
    // A bare script name would stand for the script extensions in PCRE2.
    out_ += str('\\', peek(1), '{', negated ? "^" : "", is_script ? "sc:" : "", name, '}');
    at_ = close + 1;
  }

  void code_point() {
    const bool braces = peek(1) == 'x' && peek(2) == '{';
    std::size_t begin = at_ + (braces ? 3 : 2), end = begin;
    const std::size_t longest = braces ? 6 : peek(1) == 'x' ? 2 : 4;
    while (end < in_.size() && end - begin < longest && is_hex(in_[end])) ++end;
    const std::string digits = in_.substr(begin, end - begin);
    if (digits.empty() || (braces && (end >= in_.size() || in_[end] != '}'))) refuse("an odd code point");
    const auto value = std::stoul(digits, nullptr, 16);
    if (peek(1) == 'x' && !braces && value >= 0x80) refuse("a raw byte");
    if (peek(1) == 'u' && digits.size() != 4) refuse("an odd code point");
    if (any_case_ && value >= 0x80) refuse("a letter beyond ASCII under (?i)");
    out_ += str("\\x{", digits, "}");
    at_ = end + (braces ? 1 : 0);
  }

  const std::string& in_;
  std::string out_;
  std::size_t at_ = 0;
  std::size_t atom_ = 0;  // Where the last atom begins in `out_`.
  bool any_case_ = false;
  char previous_literal_ = '\0';
  std::vector<Group> groups_;
};

}  // namespace

std::string translate_regex(const std::string& expression) { return Translator(expression).run(); }

}  // namespace glassformer::text
