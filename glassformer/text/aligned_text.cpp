#include "glassformer/text/aligned_text.h"

#include "glassformer/text/unicode.h"

namespace glassformer::text {

void AlignedText::transform(std::size_t begin, std::size_t end, const std::vector<Change>& characters,
                            std::size_t dropped) {
  std::size_t at = begin;  // Behind the characters of the old text that are used up.
  const auto skip = [&](std::size_t count) {
    for (; count > 0 && at < end; --count) at += utf8_length(bytes[at]);
  };
  skip(dropped);
  const Origin start = origins.empty() ? Origin{} : Origin{origins.front().begin, origins.front().begin};
  std::string new_bytes;
  std::vector<Origin> new_origins;
  for (const Change& character : characters) {
    Origin origin = start;
    if (character.change > 0) {
      if (at > 0) origin = origins[at - 1];
    } else if (at < origins.size()) {
      origin = origins[at];
      skip(1 + static_cast<std::size_t>(-character.change));
    }
    append_utf8(new_bytes, character.point);
    new_origins.resize(new_bytes.size(), origin);
  }
  bytes.replace(begin, end - begin, new_bytes);
  const auto place = origins.erase(origins.begin() + static_cast<std::ptrdiff_t>(begin),
                                   origins.begin() + static_cast<std::ptrdiff_t>(end));
  origins.insert(place, new_origins.begin(), new_origins.end());
}

void AlignedText::prepend(std::string_view text) {
  if (bytes.empty()) return;
  std::vector<Change> changes;
  for (const char32_t point : decode_utf8(text)) changes.push_back({point, changes.empty() ? 0 : 1});
  std::size_t end = 0;
  const char32_t first = next_point(bytes, end);
  changes.push_back({first, 1});
  transform(0, end, changes, 0);
}

Pieces::Pieces(std::string_view original) : original_(original) {
  if (!original.empty()) list.push_back({0, original.size()});
}

Origin Pieces::origin(std::size_t begin, std::size_t end) const {
  if (changed_) return {current_.origins[begin].begin, current_.origins[end - 1].end};
  while (is_continuation(original_[begin])) --begin;
  while (end < original_.size() && is_continuation(original_[end])) ++end;
  return {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)};
}

AlignedText Pieces::copy(const Piece& piece) const {
  AlignedText part;
  part.bytes = text(piece);
  if (changed_) {
    part.origins.assign(current_.origins.begin() + static_cast<std::ptrdiff_t>(piece.begin),
                        current_.origins.begin() + static_cast<std::ptrdiff_t>(piece.end));
    return part;
  }
  part.origins.reserve(part.bytes.size());
  for (std::size_t at = piece.begin; at < piece.end;) {
    const std::size_t end = at + utf8_length(original_[at]);
    part.origins.resize(part.origins.size() + (end - at),
                        {static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(end)});
    at = end;
  }
  return part;
}

}  // namespace glassformer::text
