#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace glassformer::text {

/// A quick hash of bytes, for tables in memory only.
std::uint64_t hash_bytes(std::string_view bytes);

/// Tokens and their ids, both ways.
class Vocabulary {
 public:
  void reserve(std::size_t tokens);
  /// Names `id`. A second token of the same spelling takes over the spelling; false where `id` has a name already.
  bool add(std::string_view token, std::int64_t id);

  std::optional<std::int32_t> find(std::string_view token) const;
  bool has(std::int64_t id) const { return id >= 0 && id < end() && present_[static_cast<std::size_t>(id)]; }
  const std::string& token(std::int64_t id) const { return tokens_[static_cast<std::size_t>(id)]; }
  std::int64_t end() const { return static_cast<std::int64_t>(tokens_.size()); }  // One more than the largest id.
  std::int64_t size() const { return count_; }

 private:
  void insert(std::int32_t id);
  void grow(std::size_t slots);

  std::deque<std::string> tokens_;  // Never moves a token.
  std::vector<bool> present_;
  std::vector<std::int32_t> slots_;  // -1: free.
  std::int64_t count_ = 0;
  std::size_t used_ = 0;
};

}  // namespace glassformer::text
