#include "glassformer/text/bpe.h"

#include <algorithm>
#include <cstdio>

#include "glassformer/base/errors.h"
#include "glassformer/text/unicode.h"
#include "glassformer/text/word_cache.h"

namespace glassformer::text {
namespace {

/// Up to here looking through all pairs for the next merge beats keeping a queue of them.
constexpr std::size_t kShortWord = 32;

std::string fallback_token(unsigned byte) {
  char name[8];
  std::snprintf(name, sizeof(name), "<0x%02X>", byte);
  return name;
}

/// The raw bytes that a byte-level token stands for; false where it has a character beyond that alphabet.
bool to_raw_bytes(std::string_view token, std::string& raw) {
  raw.clear();
  for (std::size_t at = 0; at < token.size();) {
    const int byte = character_to_byte(next_point(token, at));
    if (byte < 0) return false;
    raw.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  }
  return true;
}

}  // namespace

class Bpe::State : public ModelState {
 public:
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<std::uint32_t> ranks;
  std::vector<std::int32_t> joined;
  std::vector<Candidate> queue;
};

Bpe::Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, BpeOptions options, bool byte_mode)
    : vocabulary_(vocabulary), options_(std::move(options)), byte_mode_(byte_mode) {
  if (!options_.unknown_token.empty()) unknown_ = vocabulary_.find(options_.unknown_token).value_or(-1);
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string character;
    append_utf8(character, byte_to_character(static_cast<std::uint8_t>(byte)));
    byte_ids_[byte] = vocabulary_.find(character).value_or(-1);
    fallback_ids_[byte] = vocabulary_.find(fallback_token(byte)).value_or(-1);
  }
  std::size_t slots = 64;
  while (slots < merges.size() * 2) slots *= 2;
  pairs_.resize(slots);
  for (std::size_t rank = 0; rank < merges.size(); ++rank) add_pair(merges[rank], static_cast<std::uint32_t>(rank));
  if (byte_mode_ && options_.ignore_merges) {
    std::string raw;
    raw_tokens_.reserve(static_cast<std::size_t>(vocabulary_.size()));
    for (std::int64_t id = 0; id < vocabulary_.end(); ++id) {
      if (vocabulary_.has(id) && to_raw_bytes(vocabulary_.token(id), raw)) raw_tokens_.add(raw, id);
    }
  }
}

std::unique_ptr<ModelState> Bpe::make_state() const { return std::make_unique<State>(); }

const Bpe::Pair* Bpe::find_pair(std::int32_t first, std::int32_t second) const {
  const std::uint64_t key = static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint32_t>(second);
  const std::size_t mask = pairs_.size() - 1;
  for (std::size_t slot = (key * 0x9E3779B97F4A7C15u >> 20) & mask;; slot = (slot + 1) & mask) {
    if (pairs_[slot].key == key) return &pairs_[slot];
    if (pairs_[slot].key == kNoPair) return nullptr;
  }
}

void Bpe::add_pair(const Merge& merge, std::uint32_t rank) {
  const std::uint64_t key = static_cast<std::uint64_t>(merge.first) << 32 | static_cast<std::uint32_t>(merge.second);
  const std::size_t mask = pairs_.size() - 1;
  std::size_t slot = (key * 0x9E3779B97F4A7C15u >> 20) & mask;
  while (pairs_[slot].key != kNoPair && pairs_[slot].key != key) slot = (slot + 1) & mask;
  pairs_[slot] = {key, rank, merge.joined};  // Of a merge that is listed twice the later one counts.
}

void Bpe::encode(std::string_view piece, ModelState& model_state, std::vector<WordToken>& out) const {
  auto& state = static_cast<State&>(model_state);
  if (piece.size() == 1 && byte_mode_ && byte_ids_[static_cast<unsigned char>(piece[0])] >= 0) {
    out.push_back({byte_ids_[static_cast<unsigned char>(piece[0])], 0, 1});
    return;
  }
  if (piece.size() > WordCache::kLongestWord) {
    if (!whole_token(piece, out)) merge_piece(piece, state, out);
    return;
  }
  const std::uint64_t hash = hash_bytes(piece);
  if (state.cache.find(piece, hash, out)) return;
  const std::size_t before = out.size();
  if (!whole_token(piece, out)) merge_piece(piece, state, out);
  state.cache.add(piece, hash, out.data() + before, out.size() - before);
}

bool Bpe::whole_token(std::string_view piece, std::vector<WordToken>& out) const {
  if (!options_.ignore_merges) return false;
  const std::optional<std::int32_t> id = byte_mode_ ? raw_tokens_.find(piece) : vocabulary_.find(piece);
  if (id) out.push_back({*id, 0, static_cast<std::uint32_t>(piece.size())});
  return id.has_value();
}

void Bpe::merge_piece(std::string_view piece, State& state, std::vector<WordToken>& out) const {
  if (byte_mode_ && std::any_of(piece.begin(), piece.end(),
                                [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)] < 0; })) {
    spelled_out(piece, state, out);
    return;
  }
  state.symbols.clear();
  if (byte_mode_) {
    bytes_to_symbols(piece, state.symbols);
  } else {
    characters_to_symbols(piece, state.symbols);
  }
  for (std::size_t i = 0; i < state.symbols.size(); ++i) {
    state.symbols[i].previous = static_cast<std::int32_t>(i) - 1;
    state.symbols[i].next = i + 1 < state.symbols.size() ? static_cast<std::int32_t>(i) + 1 : -1;
  }
  if (state.symbols.size() <= kShortWord) {
    merge_short(state.symbols, state);
  } else {
    merge_long(state.symbols, state);
  }
  std::uint32_t at = 0;
  for (const Symbol& symbol : state.symbols) {
    if (symbol.length == 0) continue;
    out.push_back({symbol.id, at, at + symbol.length});
    at += symbol.length;
  }
}

void Bpe::bytes_to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  for (const char byte : piece) symbols.push_back({byte_ids_[static_cast<unsigned char>(byte)], 1, -1, -1});
}

void Bpe::characters_to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  const bool plain = options_.continuing_prefix.empty() && options_.end_suffix.empty();
  std::string decorated;
  Symbol unknown = {-1, 0, -1, -1};
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t length = std::min(utf8_length(piece[at]), piece.size() - at);
    std::string_view spelling = piece.substr(at, length);
    if (!plain) {
      decorated = at == 0 ? "" : options_.continuing_prefix;
      decorated += spelling;
      if (at + length == piece.size()) decorated += options_.end_suffix;
      spelling = decorated;
    }
    at += length;
    if (const auto id = vocabulary_.find(spelling)) {
      if (unknown.length > 0) symbols.push_back(unknown);
      unknown.length = 0;
      symbols.push_back({*id, static_cast<std::uint32_t>(length), -1, -1});
    } else if (!(options_.byte_fallback && add_fallback(spelling, symbols))) {
      add_unknown(static_cast<std::uint32_t>(length), unknown, symbols);
    }
  }
  if (unknown.length > 0) symbols.push_back(unknown);
}

void Bpe::add_unknown(std::uint32_t length, Symbol& pending, std::vector<Symbol>& symbols) const {
  if (options_.unknown_token.empty()) return;
  if (unknown_ < 0) {
    throw InputError(str("the text has a character that the tokenizer lacks, and its unknown token '",
                         options_.unknown_token, "' is not in its vocabulary"));
  }
  if (pending.length > 0 && options_.fuse_unknown) {
    pending.length += length;
    return;
  }
  if (pending.length > 0) symbols.push_back(pending);
  pending = {unknown_, length, -1, -1};
}

bool Bpe::add_fallback(std::string_view spelling, std::vector<Symbol>& symbols) const {
  for (const char byte : spelling) {
    if (fallback_ids_[static_cast<unsigned char>(byte)] < 0) return false;
  }
  for (const char byte : spelling) symbols.push_back({fallback_ids_[static_cast<unsigned char>(byte)], 1, -1, -1});
  return true;
}

/// A piece with a byte that the vocabulary lacks, in byte mode: the rules for unknown characters count lengths in the
/// spelled-out text, so it is spelled out, and the tokens' ranges are brought back to bytes.
void Bpe::spelled_out(std::string_view piece, State& state, std::vector<WordToken>& out) const {
  std::string spelled;
  std::vector<std::uint32_t> byte_of;
  for (std::size_t i = 0; i < piece.size(); ++i) {
    append_utf8(spelled, byte_to_character(static_cast<std::uint8_t>(piece[i])));
    byte_of.resize(spelled.size(), static_cast<std::uint32_t>(i));
  }
  state.symbols.clear();
  characters_to_symbols(spelled, state.symbols);
  for (std::size_t i = 0; i < state.symbols.size(); ++i) {
    state.symbols[i].previous = static_cast<std::int32_t>(i) - 1;
    state.symbols[i].next = i + 1 < state.symbols.size() ? static_cast<std::int32_t>(i) + 1 : -1;
  }
  merge_long(state.symbols, state);
  std::uint32_t at = 0;
  for (const Symbol& symbol : state.symbols) {
    if (symbol.length == 0) continue;
    out.push_back({symbol.id, byte_of[at], byte_of[at + symbol.length - 1] + 1});
    at += symbol.length;
  }
}

void Bpe::merge_short(std::vector<Symbol>& symbols, State& state) const {
  std::size_t count = symbols.size();
  if (count < 2) return;
  std::vector<std::uint32_t>& ranks = state.ranks;
  std::vector<std::int32_t>& joined = state.joined;
  ranks.assign(count, kNoRank);
  joined.resize(count);
  const auto rate = [&](std::size_t i) {
    const Pair* pair = i + 1 < count ? find_pair(symbols[i].id, symbols[i + 1].id) : nullptr;
    ranks[i] = pair ? pair->rank : kNoRank;
    if (pair) joined[i] = pair->joined;
  };
  for (std::size_t i = 0; i + 1 < count; ++i) rate(i);
  while (true) {
    const auto best = static_cast<std::size_t>(
        std::min_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(count)) - ranks.begin());
    if (ranks[best] == kNoRank) break;
    symbols[best].id = joined[best];
    symbols[best].length += symbols[best + 1].length;
    const auto gone = static_cast<std::ptrdiff_t>(best) + 1;
    symbols.erase(symbols.begin() + gone);
    ranks.erase(ranks.begin() + gone);
    joined.erase(joined.begin() + gone);
    --count;
    rate(best);
    if (best > 0) rate(best - 1);
  }
}

void Bpe::push(std::vector<Candidate>& queue, const std::vector<Symbol>& symbols, std::int32_t position) const {
  const Symbol& symbol = symbols[static_cast<std::size_t>(position)];
  if (symbol.next < 0) return;
  if (const Pair* pair = find_pair(symbol.id, symbols[static_cast<std::size_t>(symbol.next)].id)) {
    queue.push_back({pair->rank, position, pair->joined});
  }
}

void Bpe::merge_long(std::vector<Symbol>& symbols, State& state) const {
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::vector<Candidate>& queue = state.queue;
  queue.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) push(queue, symbols, static_cast<std::int32_t>(i));
  std::make_heap(queue.begin(), queue.end(), later);
  const auto enqueue = [&](std::int32_t position) {
    const std::size_t before = queue.size();
    push(queue, symbols, position);
    if (queue.size() > before) std::push_heap(queue.begin(), queue.end(), later);
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const Candidate top = queue.back();
    queue.pop_back();
    Symbol& left = symbols[static_cast<std::size_t>(top.position)];
    if (left.length == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // An entry is out of date unless the pair that stands there now gives the same token.
    const Pair* pair = find_pair(left.id, right.id);
    if (!pair || pair->joined != top.joined) continue;
    left.id = top.joined;
    left.length += right.length;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = top.position;
    if (left.previous >= 0) enqueue(left.previous);
    enqueue(top.position);
  }
}

}  // namespace glassformer::text
