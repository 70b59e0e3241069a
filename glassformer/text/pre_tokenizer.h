#pragma once
// Pre-tokenisers: they divide a normalised text into the pieces that are merged on their own.

#include <memory>
#include <vector>

#include "glassformer/text/aligned_text.h"
#include "glassformer/text/pattern.h"

namespace glassformer::text {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
  /// Spells the text out in the byte-level alphabet from the last step on. Called on the last ByteLevel of a tokenizer
  /// whose model can't take raw bytes; without it ByteLevel leaves the bytes as they are.
  virtual void spell_out() {}
  /// Whether this is ByteLevel, or a sequence that ends in one and has no other.
  virtual bool ends_in_byte_level() const { return false; }
  virtual bool has_byte_level() const { return false; }
};

enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex);
std::unique_ptr<PreTokenizer> make_split(std::unique_ptr<Pattern> pattern, SplitBehavior behavior, bool invert);
std::unique_ptr<PreTokenizer> make_digits(bool individual);
std::unique_ptr<PreTokenizer> make_whitespace();
std::unique_ptr<PreTokenizer> make_whitespace_split();
std::unique_ptr<PreTokenizer> make_punctuation(SplitBehavior behavior);
std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts);

}  // namespace glassformer::text
