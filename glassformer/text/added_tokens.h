#pragma once
// Tokens that are cut out of the text before anything else: special ones ("<|im_end|>") and those added to a
// vocabulary.

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "glassformer/text/aligned_text.h"
#include "glassformer/text/normalizer.h"
#include "glassformer/text/vocabulary.h"

namespace glassformer::text {

struct AddedToken {
  std::string content;
  bool single_word = false;  // Only where no letter stands next to it.
  bool lstrip = false;       // Takes the white space before it.
  bool rstrip = false;       // Takes the white space behind it.
  bool normalized = true;    // Is looked for in the normalised text.
  bool special = false;
};

/// Finds the longest of several strings at each place, from left to right.
class TokenFinder {
 public:
  void add(std::string_view content, std::int32_t id);
  bool empty() const { return nodes_.size() == 1; }
  /// Looks at `from` and after it for the first match; false where there is none.
  bool find(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end, std::int32_t& id) const;

 private:
  struct Node {
    std::map<unsigned char, std::int32_t> next;
    std::int32_t id = -1;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> begins_{};
};

class AddedTokens {
 public:
  /// Takes the tokens in the order of the file. Those that `vocabulary` lacks get the next free ids, as in
  /// `tokenizers`.
  void add(const std::vector<AddedToken>& tokens, Vocabulary& vocabulary, std::int64_t model_size);
  /// To be called once, behind the last `add`.
  void finish(const Vocabulary& vocabulary, const Normalizer* normalizer);

  /// Cuts the tokens out of the text and normalises the rest.
  void extract(Pieces& pieces, const Normalizer* normalizer) const;

  bool is_special(std::string_view token) const { return special_.find(token) != special_.end(); }
  bool is_added(std::int64_t id) const { return by_id_.find(id) != by_id_.end(); }
  const std::map<std::int64_t, AddedToken>& by_id() const { return by_id_; }

 private:
  void divide(std::string_view text, const TokenFinder& finder, std::vector<Piece>& out) const;

  std::map<std::int64_t, AddedToken> by_id_;
  std::map<std::string, std::int64_t, std::less<>> ids_;
  std::map<std::string, std::int64_t, std::less<>> special_;
  TokenFinder in_original_, in_normalized_;
};

}  // namespace glassformer::text
