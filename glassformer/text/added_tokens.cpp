#include "glassformer/text/added_tokens.h"

#include <algorithm>

#include "glassformer/text/unicode.h"

namespace glassformer::text {

void TokenFinder::add(std::string_view content, std::int32_t id) {
  if (content.empty()) return;
  begins_[static_cast<unsigned char>(content[0])] = true;
  std::size_t node = 0;
  for (const char byte : content) {
    const auto [place, is_new] =
        nodes_[node].next.try_emplace(static_cast<unsigned char>(byte), static_cast<std::int32_t>(nodes_.size()));
    node = static_cast<std::size_t>(place->second);
    if (is_new) nodes_.emplace_back();
  }
  if (nodes_[node].id < 0) nodes_[node].id = id;
}

bool TokenFinder::find(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end,
                       std::int32_t& id) const {
  for (std::size_t start = from; start < text.size(); ++start) {
    if (!begins_[static_cast<unsigned char>(text[start])]) continue;
    std::size_t node = 0;
    bool found = false;
    for (std::size_t at = start; at < text.size(); ++at) {
      const auto next = nodes_[node].next.find(static_cast<unsigned char>(text[at]));
      if (next == nodes_[node].next.end()) break;
      node = static_cast<std::size_t>(next->second);
      if (nodes_[node].id < 0) continue;
      found = true;
      begin = start;
      end = at + 1;
      id = nodes_[node].id;
    }
    if (found) return true;
  }
  return false;
}

void AddedTokens::add(const std::vector<AddedToken>& tokens, Vocabulary& vocabulary, std::int64_t model_size) {
  for (const AddedToken& token : tokens) {
    if (token.special && !token.content.empty()) special_.emplace(token.content, 0);
  }
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    std::int64_t id = 0;
    if (const auto known = vocabulary.find(token.content)) {
      id = *known;
    } else {
      std::int64_t largest = -1;
      if (!by_id_.empty()) largest = by_id_.rbegin()->first;
      id = largest >= model_size || (model_size == 0 && largest >= 0) ? largest + 1 : model_size;
      while (vocabulary.has(id)) ++id;  // A model whose ids have gaps.
      vocabulary.add(token.content, id);
    }
    ids_[token.content] = id;
    by_id_[id] = token;
  }
}

void AddedTokens::finish(const Vocabulary& vocabulary, const Normalizer* normalizer) {
  for (const auto& [id, token] : by_id_) {
    const auto index = static_cast<std::int32_t>(id);
    if (!token.normalized) {
      in_original_.add(vocabulary.token(id), index);
      continue;
    }
    AlignedText content;
    content.bytes = token.content;
    content.origins.resize(token.content.size());
    if (normalizer) normalizer->apply(content);
    in_normalized_.add(content.bytes, index);
  }
}

void AddedTokens::extract(Pieces& pieces, const Normalizer* normalizer) const {
  if (!in_original_.empty()) {
    pieces.split([&](std::string_view text, std::vector<Piece>& out) { divide(text, in_original_, out); });
  }
  if (normalizer && std::any_of(pieces.list.begin(), pieces.list.end(), [&](const Piece& piece) {
        return piece.token < 0 && !normalizer->is_identity(pieces.text(piece));
      })) {
    pieces.rewrite([&](AlignedText& text) { normalizer->apply(text); });
  }
  if (!in_normalized_.empty()) {
    pieces.split([&](std::string_view text, std::vector<Piece>& out) { divide(text, in_normalized_, out); });
  }
}

void AddedTokens::divide(std::string_view text, const TokenFinder& finder, std::vector<Piece>& out) const {
  std::size_t covered = 0, from = 0, begin = 0, end = 0;
  std::int32_t id = 0;
  while (finder.find(text, from, begin, end, id)) {
    from = end;
    const AddedToken& token = by_id_.find(id)->second;
    if (token.single_word) {
      const bool word_before = begin > 0 && is_word(previous_point(text, begin));
      std::size_t at = end;
      if (word_before || (end < text.size() && is_word(next_point(text, at)))) continue;
    }
    if (token.lstrip) {
      while (begin > covered && is_space(previous_point(text, begin))) {
        for (--begin; is_continuation(text[begin]);) --begin;
      }
    }
    if (token.rstrip) {
      for (std::size_t at = end; at < text.size() && is_space(next_point(text, at));) end = at;
    }
    if (covered < begin) out.push_back({covered, begin});
    out.push_back({begin, end, id});
    covered = end;
  }
  if (covered < text.size()) out.push_back({covered, text.size()});
}

}  // namespace glassformer::text
