#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "glassformer/text/model.h"
#include "glassformer/text/vocabulary.h"

namespace glassformer::text {

struct BpeOptions {
  std::string unknown_token;  // Empty: an unknown character vanishes.
  std::string continuing_prefix;
  std::string end_suffix;
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;  // A piece that is a token as it stands is not merged.
};

/// A merge of two tokens, by id; its rank is its place in the list.
struct Merge {
  std::int32_t first = 0;
  std::int32_t second = 0;
  std::int32_t joined = 0;
};

/// Byte-pair encoding. In byte mode a piece is raw bytes and each stands for its character of the byte-level alphabet
/// (so that the text is never spelled out in that alphabet); otherwise a piece is characters.
class Bpe : public Model {
 public:
  Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, BpeOptions options, bool byte_mode);
  /// Whether byte mode would give what spelling out the alphabet gives.
  static bool allows_byte_mode(const BpeOptions& options) {
    return options.continuing_prefix.empty() && options.end_suffix.empty() && !options.byte_fallback;
  }

  std::unique_ptr<ModelState> make_state() const override;
  void encode(std::string_view piece, ModelState& state, std::vector<WordToken>& out) const override;

 private:
  struct Symbol {
    std::int32_t id;
    std::uint32_t length;  // 0: merged into another.
    std::int32_t previous, next;
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t position;
    std::int32_t joined;
  };
  struct Pair {
    std::uint64_t key = kNoPair;
    std::uint32_t rank = kNoRank;
    std::int32_t joined = -1;
  };
  class State;
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};
  static constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

  const Pair* find_pair(std::int32_t first, std::int32_t second) const;
  void add_pair(const Merge& merge, std::uint32_t rank);
  bool whole_token(std::string_view piece, std::vector<WordToken>& out) const;
  void merge_piece(std::string_view piece, State& state, std::vector<WordToken>& out) const;
  void bytes_to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void characters_to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void add_unknown(std::uint32_t length, Symbol& pending, std::vector<Symbol>& symbols) const;
  bool add_fallback(std::string_view spelling, std::vector<Symbol>& symbols) const;
  void spelled_out(std::string_view piece, State& state, std::vector<WordToken>& out) const;
  void merge_short(std::vector<Symbol>& symbols, State& state) const;
  void merge_long(std::vector<Symbol>& symbols, State& state) const;
  void push(std::vector<Candidate>& queue, const std::vector<Symbol>& symbols, std::int32_t position) const;

  const Vocabulary& vocabulary_;
  BpeOptions options_;
  bool byte_mode_;
  std::int32_t unknown_ = -1;
  std::array<std::int32_t, 256> byte_ids_{};
  std::array<std::int32_t, 256> fallback_ids_{};
  bool has_fallback_ = false;
  std::vector<Pair> pairs_;
  Vocabulary raw_tokens_;  // The tokens in raw bytes; for ignore_merges in byte mode.
};

}  // namespace glassformer::text
