#pragma once
// What tokenizer.json calls a pattern: a regular expression or a literal string, found over and over in a text.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace glassformer::text {

/// A part of a text, and whether the pattern matched it. Matches and the parts between them tile the text.
struct Match {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool matched = false;
};

class Pattern {
 public:
  virtual ~Pattern() = default;
  /// Appends the parts of `text` (valid UTF-8) to `out`. Empty matches stand between others, but never right behind
  /// one.
  virtual void find(std::string_view text, std::vector<Match>& out) const = 0;
};

/// A regular expression in the syntax of Oniguruma (Ruby), which is what `tokenizers` reads. The well-known splitting
/// patterns get hand-written matchers. `UnsupportedError` for what we could not run with the same meaning.
std::unique_ptr<Pattern> make_regex(const std::string& expression);
/// The same without the hand-written matchers; tests compare the two.
std::unique_ptr<Pattern> make_general_regex(const std::string& expression);
std::unique_ptr<Pattern> make_literal(const std::string& text);

/// A hand-written matcher for exactly that expression, or null.
std::unique_ptr<Pattern> known_pattern(std::string_view expression);

extern const char* const kGpt2Pattern;
extern const char* const kLlama3Pattern;
extern const char* const kQwen2Pattern;
extern const char* const kQwen35Pattern;
extern const char* const kGpt4oPattern;

}  // namespace glassformer::text
