#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "glassformer/text/model.h"
#include "glassformer/text/vocabulary.h"

namespace glassformer::text {

/// The tokens of words met before. Bounded: when it is full it starts anew. For one thread at a time.
class WordCache {
 public:
  static constexpr std::size_t kLongestWord = 128;

  /// Appends the tokens of `word` to `out`; false where it is unknown.
  bool find(std::string_view word, std::uint64_t hash, std::vector<WordToken>& out) const {
    if (slots_.empty()) return false;
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
      const Entry& entry = slots_[slot];
      if (entry.count == 0) return false;
      if (entry.hash != hash || std::string_view(words_).substr(entry.word, entry.length) != word) continue;
      const auto first = tokens_.begin() + entry.first;
      out.insert(out.end(), first, first + entry.count);
      return true;
    }
  }

  void add(std::string_view word, std::uint64_t hash, const WordToken* tokens, std::size_t count) {
    if (count == 0) return;
    if (tokens_.size() + count > kMostTokens) clear();
    if ((used_ + 1) * 2 > slots_.size()) grow();
    const Entry entry = {hash, static_cast<std::uint32_t>(words_.size()), static_cast<std::uint32_t>(word.size()),
                         static_cast<std::uint32_t>(tokens_.size()), static_cast<std::uint32_t>(count)};
    words_ += word;
    tokens_.insert(tokens_.end(), tokens, tokens + count);
    place(entry);
  }

 private:
  static constexpr std::size_t kMostSlots = std::size_t{1} << 17;
  static constexpr std::size_t kMostTokens = std::size_t{1} << 19;

  struct Entry {
    std::uint64_t hash = 0;
    std::uint32_t word = 0, length = 0;
    std::uint32_t first = 0, count = 0;  // Of tokens; a count of 0 is a free slot.
  };

  void place(const Entry& entry) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = entry.hash & mask;
    while (slots_[slot].count != 0) slot = (slot + 1) & mask;
    slots_[slot] = entry;
    ++used_;
  }

  void clear() {
    words_.clear();
    tokens_.clear();
    std::fill(slots_.begin(), slots_.end(), Entry{});
    used_ = 0;
  }

  void grow() {
    if (slots_.size() == kMostSlots) {
      clear();
      return;
    }
    const std::vector<Entry> old = std::move(slots_);
    used_ = 0;
    slots_.assign(old.empty() ? 1024 : old.size() * 2, Entry{});
    for (const Entry& entry : old) {
      if (entry.count != 0) place(entry);
    }
  }

  std::vector<Entry> slots_;
  std::size_t used_ = 0;
  std::string words_;
  std::vector<WordToken> tokens_;
};

}  // namespace glassformer::text
