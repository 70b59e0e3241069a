#pragma once
// Normalisers: what tokenizer.json does to a text before it is split.

#include <memory>
#include <string>
#include <vector>

#include "glassformer/text/aligned_text.h"
#include "glassformer/text/pattern.h"

namespace glassformer::text {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(AlignedText& text) const = 0;
  /// True where `apply` would change nothing and move no origin; a cheap test that may say no too often.
  virtual bool is_identity(std::string_view) const { return false; }
};

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

std::unique_ptr<Normalizer> make_normal_form(NormalForm form);
std::unique_ptr<Normalizer> make_lowercase();
std::unique_ptr<Normalizer> make_strip_accents();
std::unique_ptr<Normalizer> make_byte_level_normalizer();
std::unique_ptr<Normalizer> make_strip(bool left, bool right);
std::unique_ptr<Normalizer> make_prepend(std::string text);
std::unique_ptr<Normalizer> make_replace(std::unique_ptr<Pattern> pattern, std::string content);
std::unique_ptr<Normalizer> make_normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts);

}  // namespace glassformer::text
