#include "glassformer/text/normalizer.h"

#include <unicode/uchar.h>

#include <algorithm>

#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

/// Keeps the characters that `keep` says yes to.
template <typename Keep>
void filter(AlignedText& text, Keep keep) {
  std::vector<Change> changes;
  std::size_t leading = 0;
  for (std::size_t at = 0; at < text.bytes.size();) {
    const char32_t point = next_point(text.bytes, at);
    if (keep(point)) {
      changes.push_back({point, 0});
    } else if (changes.empty()) {
      ++leading;
    } else {
      --changes.back().change;
    }
  }
  text.transform(0, text.bytes.size(), changes, leading);
}

/// Lower case of single characters as of Unicode 17, whatever version ICU has.
char32_t lower(char32_t point) {
  switch (point) {
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return point + 1;
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    default:
      if (point >= 0x10D50 && point <= 0x10D65) return point + 0x20;
      if (point >= 0x16EA0 && point <= 0x16EB8) return point + 0x1B;
      return static_cast<char32_t>(u_tolower(static_cast<UChar32>(point)));
  }
}

class Lowercase : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    std::vector<Change> changes;
    changes.reserve(text.bytes.size());
    for (std::size_t at = 0; at < text.bytes.size();) {
      const char32_t point = next_point(text.bytes, at);
      changes.push_back({lower(point), 0});
      if (point == 0x130) changes.push_back({0x307, 1});  // The only character that becomes two.
    }
    text.transform(0, text.bytes.size(), changes, 0);
  }
};

class StripAccents : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    filter(text, [](char32_t point) { return !is_mark(point); });
  }
  bool is_identity(std::string_view text) const override {
    return std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<unsigned char>(byte) < 0xCC; });
  }
};

class ByteLevel : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    std::vector<Change> changes;
    changes.reserve(text.bytes.size());
    for (const char byte : text.bytes) {
      changes.push_back({byte_to_character(static_cast<std::uint8_t>(byte)), is_continuation(byte) ? 1 : 0});
    }
    text.transform(0, text.bytes.size(), changes, 0);
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(AlignedText& text) const override {
    std::size_t begin = 0, end = text.bytes.size(), leading = 0, trailing = 0;
    for (std::size_t at = 0; left_ && at < end && is_space(next_point(text.bytes, at)); ++leading) begin = at;
    for (; right_ && end > begin && is_space(previous_point(text.bytes, end)); ++trailing) {
      for (--end; is_continuation(text.bytes[end]);) --end;
    }
    if (leading == 0 && trailing == 0) return;
    std::vector<Change> changes;
    for (std::size_t at = begin; at < end;) changes.push_back({next_point(text.bytes, at), 0});
    if (!changes.empty()) changes.back().change = -static_cast<int>(trailing);
    text.transform(0, text.bytes.size(), changes, leading);
  }

 private:
  bool left_, right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(AlignedText& text) const override { text.prepend(text_); }

 private:
  std::string text_;
};

class Replace : public Normalizer {
 public:
  Replace(std::unique_ptr<Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(AlignedText& text) const override {
    if (text.bytes.empty()) return;
    std::vector<Match> matches;
    pattern_->find(text.bytes, matches);
    AlignedText out;
    const auto origin_before = [&](std::size_t at) {
      return at > 0 ? text.origins[at - 1] : Origin{text.origins.front().begin, text.origins.front().begin};
    };
    for (const Match& match : matches) {
      if (match.matched) {
        out.bytes += content_;
        out.origins.resize(out.bytes.size(), origin_before(match.end));
      } else {
        out.bytes.append(text.bytes, match.begin, match.end - match.begin);
        out.origins.insert(out.origins.end(), text.origins.begin() + static_cast<std::ptrdiff_t>(match.begin),
                           text.origins.begin() + static_cast<std::ptrdiff_t>(match.end));
      }
    }
    text = std::move(out);
  }

 private:
  std::unique_ptr<Pattern> pattern_;
  std::string content_;
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(AlignedText& text) const override {
    for (const auto& part : parts_) part->apply(text);
  }
  bool is_identity(std::string_view text) const override {
    return std::all_of(parts_.begin(), parts_.end(), [&](const auto& part) { return part->is_identity(text); });
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> make_lowercase() { return std::make_unique<Lowercase>(); }
std::unique_ptr<Normalizer> make_strip_accents() { return std::make_unique<StripAccents>(); }
std::unique_ptr<Normalizer> make_byte_level_normalizer() { return std::make_unique<ByteLevel>(); }
std::unique_ptr<Normalizer> make_strip(bool left, bool right) { return std::make_unique<Strip>(left, right); }
std::unique_ptr<Normalizer> make_prepend(std::string text) { return std::make_unique<Prepend>(std::move(text)); }
std::unique_ptr<Normalizer> make_replace(std::unique_ptr<Pattern> pattern, std::string content) {
  return std::make_unique<Replace>(std::move(pattern), std::move(content));
}
std::unique_ptr<Normalizer> make_normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace glassformer::text
