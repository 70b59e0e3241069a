#include "glassformer/text/post_processor.h"

#include <algorithm>

#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

bool is_blank(char32_t point) { return point == byte_to_character(' ') || is_space(point); }

/// Takes leading and trailing spaces out of the offsets of each token.
class ByteLevelTrimmer : public PostProcessor {
 public:
  explicit ByteLevelTrimmer(bool add_prefix_space) : add_prefix_space_(add_prefix_space) {}

  void apply(Encoding& encoding, bool, bool detailed) const override {
    if (!detailed) return;
    for (std::size_t i = 0; i < encoding.tokens.size(); ++i) trim(encoding.tokens[i], encoding.offsets[i], i == 0);
  }

 private:
  void trim(const std::string& token, std::pair<int64_t, int64_t>& offsets, bool is_first_token) const {
    const std::u32string points = decode_utf8(token);
    const auto leading = std::find_if_not(points.begin(), points.end(), is_blank) - points.begin();
    const auto trailing = std::find_if_not(points.rbegin(), points.rend(), is_blank) - points.rbegin();
    // A space that was only put in front of the text is not in the offsets to begin with.
    const bool is_put_in_front = add_prefix_space_ && leading == 1 && (is_first_token || offsets.first == 0);
    if (leading > 0 && !is_put_in_front) offsets.first = std::min<int64_t>(offsets.first + leading, offsets.second);
    if (trailing > 0 && offsets.second >= trailing) {
      offsets.second = std::max<int64_t>(offsets.second - trailing, offsets.first);
    }
  }

  bool add_prefix_space_;
};

class Template : public PostProcessor {
 public:
  explicit Template(std::vector<TemplatePart> parts) : parts_(std::move(parts)) {}

  void apply(Encoding& encoding, bool add_special_tokens, bool detailed) const override {
    Encoding out;
    for (const TemplatePart& part : parts_) {
      if (part.is_text) {
        out.ids.insert(out.ids.end(), encoding.ids.begin(), encoding.ids.end());
        out.tokens.insert(out.tokens.end(), encoding.tokens.begin(), encoding.tokens.end());
        out.offsets.insert(out.offsets.end(), encoding.offsets.begin(), encoding.offsets.end());
      } else if (add_special_tokens) {
        out.ids.insert(out.ids.end(), part.ids.begin(), part.ids.end());
        if (!detailed) continue;
        out.tokens.insert(out.tokens.end(), part.tokens.begin(), part.tokens.end());
        out.offsets.resize(out.offsets.size() + part.ids.size());
      }
    }
    encoding = std::move(out);
  }

 private:
  std::vector<TemplatePart> parts_;
};

class Sequence : public PostProcessor {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PostProcessor>> parts) : parts_(std::move(parts)) {}
  void apply(Encoding& encoding, bool add_special_tokens, bool detailed) const override {
    for (const auto& part : parts_) part->apply(encoding, add_special_tokens, detailed);
  }

 private:
  std::vector<std::unique_ptr<PostProcessor>> parts_;
};

}  // namespace

std::unique_ptr<PostProcessor> make_byte_level_trimmer(bool add_prefix_space) {
  return std::make_unique<ByteLevelTrimmer>(add_prefix_space);
}
std::unique_ptr<PostProcessor> make_template(std::vector<TemplatePart> parts) {
  return std::make_unique<Template>(std::move(parts));
}
std::unique_ptr<PostProcessor> make_post_processor_sequence(std::vector<std::unique_ptr<PostProcessor>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace glassformer::text
