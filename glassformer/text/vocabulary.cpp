#include "glassformer/text/vocabulary.h"

#include <cstring>

namespace glassformer::text {

std::uint64_t hash_bytes(std::string_view bytes) {
  constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;
  const auto mix = [](std::uint64_t hash, std::uint64_t word) {
    hash = (hash ^ word) * kOdd;
    return hash ^ hash >> 29;
  };
  std::uint64_t hash = bytes.size() * kOdd, word = 0;
  const char* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; at += 8, left -= 8) {
    std::memcpy(&word, at, 8);
    hash = mix(hash, word);
  }
  if (left > 0) {
    word = 0;
    std::memcpy(&word, at, left);
    hash = mix(hash, word);
  }
  return hash ^ hash >> 32;
}

void Vocabulary::reserve(std::size_t tokens) {
  present_.reserve(tokens);
  std::size_t slots = 64;
  while (slots < tokens * 2) slots *= 2;
  if (slots > slots_.size()) grow(slots);
}

bool Vocabulary::add(std::string_view token, std::int64_t id) {
  const auto index = static_cast<std::size_t>(id);
  if (index >= tokens_.size()) {
    tokens_.resize(index + 1);
    present_.resize(index + 1);
  }
  if (present_[index]) return tokens_[index] == token;
  tokens_[index] = token;
  present_[index] = true;
  ++count_;
  insert(static_cast<std::int32_t>(id));
  return true;
}

std::optional<std::int32_t> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t slot = hash_bytes(token) & mask;; slot = (slot + 1) & mask) {
    const std::int32_t id = slots_[slot];
    if (id < 0) return std::nullopt;
    if (tokens_[static_cast<std::size_t>(id)] == token) return id;
  }
}

void Vocabulary::insert(std::int32_t id) {
  if ((used_ + 1) * 2 > slots_.size()) grow(slots_.empty() ? 64 : slots_.size() * 2);
  const std::string& token = tokens_[static_cast<std::size_t>(id)];
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = hash_bytes(token) & mask;
  while (slots_[slot] >= 0 && tokens_[static_cast<std::size_t>(slots_[slot])] != token) slot = (slot + 1) & mask;
  used_ += slots_[slot] < 0;
  slots_[slot] = id;
}

void Vocabulary::grow(std::size_t slots) {
  const std::vector<std::int32_t> old = std::move(slots_);
  slots_.assign(slots, -1);
  used_ = 0;
  for (const std::int32_t id : old) {
    if (id >= 0) insert(id);
  }
}

}  // namespace glassformer::text
