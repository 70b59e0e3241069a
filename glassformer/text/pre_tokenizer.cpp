#include "glassformer/text/pre_tokenizer.h"

#include <algorithm>

#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

/// Single characters that satisfy a property.
template <bool (*kProperty)(char32_t)>
class CharacterPattern : public Pattern {
 public:
  void find(std::string_view text, std::vector<Match>& out) const override {
    std::size_t covered = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      if (!kProperty(next_point(text, at))) continue;
      if (covered < begin) out.push_back({covered, begin, false});
      out.push_back({begin, at, true});
      covered = at;
    }
    if (covered < text.size()) out.push_back({covered, text.size(), false});
  }
};

/// `\w+|[^\w\s]+`
class WordPattern : public Pattern {
 public:
  void find(std::string_view text, std::vector<Match>& out) const override {
    int previous = -1;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      const char32_t point = next_point(text, at);
      const int sort = is_word(point) ? 0 : is_space(point) ? 1 : 2;
      if (sort == previous) {
        out.back().end = at;
      } else {
        out.push_back({begin, at, sort != 1});
      }
      previous = sort;
    }
  }
};

/// Joins neighbours: `join(is_match, previous_was_match)` says whether a part goes into the one before it.
template <typename Join>
void join_parts(const std::vector<Match>& parts, std::vector<Piece>& out, Join join) {
  bool previous = false;
  for (const Match& part : parts) {
    if (!out.empty() && join(part.matched, previous)) {
      out.back().end = part.end;
    } else {
      out.push_back({part.begin, part.end});
    }
    previous = part.matched;
  }
}

class Split : public PreTokenizer {
 public:
  Split(std::unique_ptr<Pattern> pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(Pieces& pieces) const override {
    std::vector<Match> parts;
    pieces.split([&](std::string_view text, std::vector<Piece>& out) {
      parts.clear();
      pattern_->find(text, parts);
      if (invert_) {
        for (Match& part : parts) part.matched = !part.matched;
      }
      divide(parts, out);
    });
  }

 private:
  void divide(std::vector<Match>& parts, std::vector<Piece>& out) const {
    switch (behavior_) {
      case SplitBehavior::kIsolated:
        for (const Match& part : parts) out.push_back({part.begin, part.end});
        return;
      case SplitBehavior::kRemoved:
        for (const Match& part : parts) {
          if (!part.matched) out.push_back({part.begin, part.end});
        }
        return;
      case SplitBehavior::kContiguous:
        join_parts(parts, out, [](bool match, bool previous) { return match == previous; });
        return;
      case SplitBehavior::kMergedWithPrevious:
        join_parts(parts, out, [](bool match, bool previous) { return match && !previous; });
        return;
      case SplitBehavior::kMergedWithNext:
        // From the end, a match joins the part behind it unless that is a match itself.
        bool next_matched = false;
        for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
          if (part->matched && !next_matched && !out.empty()) {
            out.back().begin = part->begin;
          } else {
            out.push_back({part->begin, part->end});
          }
          next_matched = part->matched;
        }
        std::reverse(out.begin(), out.end());
        return;
    }
  }

  std::unique_ptr<Pattern> pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) split_ = make_split(known_pattern(kGpt2Pattern), SplitBehavior::kIsolated, false);
  }

  void apply(Pieces& pieces) const override {
    if (add_prefix_space_ && std::any_of(pieces.list.begin(), pieces.list.end(), [&](const Piece& piece) {
          return piece.token < 0 && !pieces.text(piece).starts_with(' ');
        })) {
      pieces.rewrite([](AlignedText& text) {
        if (!text.bytes.starts_with(' ')) text.prepend(" ");
      });
    }
    if (split_) split_->apply(pieces);
    if (spell_out_) pieces.rewrite(spell);
  }
  void spell_out() override { spell_out_ = true; }
  bool ends_in_byte_level() const override { return true; }
  bool has_byte_level() const override { return true; }

 private:
  static void spell(AlignedText& text) {
    AlignedText spelled;
    for (std::size_t i = 0; i < text.bytes.size(); ++i) {
      append_utf8(spelled.bytes, byte_to_character(static_cast<std::uint8_t>(text.bytes[i])));
      spelled.origins.resize(spelled.bytes.size(), text.origins[i]);
    }
    text = std::move(spelled);
  }

  bool add_prefix_space_;
  bool spell_out_ = false;
  std::unique_ptr<PreTokenizer> split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {
    // Whatever comes behind a ByteLevel sees its alphabet.
    for (std::size_t i = 0; i + 1 < parts_.size(); ++i) parts_[i]->spell_out();
  }
  void apply(Pieces& pieces) const override {
    for (const auto& part : parts_) part->apply(pieces);
  }
  void spell_out() override {
    for (const auto& part : parts_) part->spell_out();
  }
  bool ends_in_byte_level() const override {
    if (parts_.empty() || !parts_.back()->ends_in_byte_level()) return false;
    return std::none_of(parts_.begin(), parts_.end() - 1, [](const auto& part) { return part->has_byte_level(); });
  }
  bool has_byte_level() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->has_byte_level(); });
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevel>(add_prefix_space, use_regex);
}
std::unique_ptr<PreTokenizer> make_split(std::unique_ptr<Pattern> pattern, SplitBehavior behavior, bool invert) {
  return std::make_unique<Split>(std::move(pattern), behavior, invert);
}
std::unique_ptr<PreTokenizer> make_digits(bool individual) {
  return make_split(std::make_unique<CharacterPattern<is_numeric>>(),
                    individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false);
}
std::unique_ptr<PreTokenizer> make_whitespace() {
  return make_split(std::make_unique<WordPattern>(), SplitBehavior::kRemoved, true);
}
std::unique_ptr<PreTokenizer> make_whitespace_split() {
  return make_split(std::make_unique<CharacterPattern<is_space>>(), SplitBehavior::kRemoved, false);
}
std::unique_ptr<PreTokenizer> make_punctuation(SplitBehavior behavior) {
  return make_split(std::make_unique<CharacterPattern<is_punctuation>>(), behavior, false);
}
std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace glassformer::text
