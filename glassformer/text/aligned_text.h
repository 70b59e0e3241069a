#pragma once
// A text that may have been changed, which still knows where each of its bytes came from, and its division into pieces.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glassformer::text {

/// A half-open range of bytes of the original text.
struct Origin {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

/// One character of a changed text. `change` is 1 for an inserted character, 0 for one that replaces the next character
/// of the old text, and -n for one that replaces the next and swallows the n after it.
struct Change {
  char32_t point = 0;
  int change = 0;
};

/// A string with the origin of each of its bytes.
struct AlignedText {
  std::string bytes;
  std::vector<Origin> origins;

  /// Replaces `[begin, end)` by `characters`; `dropped` characters of it go before the first of them.
  void transform(std::size_t begin, std::size_t end, const std::vector<Change>& characters, std::size_t dropped);
  void prepend(std::string_view text);
};

/// A range of the current text that is split and merged on its own, or one added token.
struct Piece {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::int32_t token = -1;  // An added token's id, or -1.
};

/// A text on its way through normalisers and pre-tokenisers. While nothing has changed a character, no copy is made and
/// no origins are kept.
class Pieces {
 public:
  explicit Pieces(std::string_view original);

  std::string_view text() const { return changed_ ? std::string_view(current_.bytes) : original_; }
  std::string_view text(const Piece& piece) const { return text().substr(piece.begin, piece.end - piece.begin); }
  std::string_view original() const { return original_; }
  /// Where the bytes `[begin, end)` (at least one) of the current text came from; whole characters of the original.
  Origin origin(std::size_t begin, std::size_t end) const;

  /// Calls `divide(text, out)` for each piece that is no token; `out` receives ranges within that piece. Empty ranges
  /// are dropped.
  template <typename Divide>
  void split(Divide&& divide) {
    std::vector<Piece> next, parts;
    next.reserve(list.size());
    for (const Piece& piece : list) {
      if (piece.token >= 0) {
        next.push_back(piece);
        continue;
      }
      parts.clear();
      divide(text(piece), parts);
      for (const Piece& part : parts) {
        if (part.begin == part.end) continue;
        next.push_back({piece.begin + part.begin, piece.begin + part.end, part.token});
      }
    }
    list = std::move(next);
  }

  /// Calls `change(aligned)` for each piece that is no token, and joins the results into a new text.
  template <typename Function>
  void rewrite(Function&& change) {
    AlignedText joined;
    joined.bytes.reserve(text().size());
    joined.origins.reserve(text().size());
    std::vector<Piece> next;
    next.reserve(list.size());
    for (const Piece& piece : list) {
      AlignedText part = copy(piece);
      if (piece.token < 0) change(part);
      const std::size_t begin = joined.bytes.size();
      joined.bytes += part.bytes;
      joined.origins.insert(joined.origins.end(), part.origins.begin(), part.origins.end());
      if (!part.bytes.empty()) next.push_back({begin, joined.bytes.size(), piece.token});
    }
    current_ = std::move(joined);
    changed_ = true;
    list = std::move(next);
  }

  std::vector<Piece> list;

 private:
  AlignedText copy(const Piece& piece) const;

  std::string_view original_;
  AlignedText current_;
  bool changed_ = false;
};

}  // namespace glassformer::text
