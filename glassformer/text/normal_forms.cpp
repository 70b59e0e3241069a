// NFC, NFD, NFKC and NFKD. Written out over ICU's decompositions, because `tokenizers` has the data of Unicode 9 and
// keeps the origin of each character in its own way.

#include <unicode/uchar.h>
#include <unicode/unorm2.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/text/normalizer.h"
#include "glassformer/text/unicode.h"

namespace glassformer::text {
namespace {

constexpr int kUnicodeVersion = 9;

bool is_newer(char32_t point) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(point), age);
  return age[0] == 0 || age[0] > kUnicodeVersion;
}

struct Character {
  char32_t point;
  int change;
  std::uint8_t combining_class;
};

std::uint8_t combining_class(char32_t point) {
  if (point < 0x300) return 0;
  const std::uint8_t value = u_getCombiningClass(static_cast<UChar32>(point));
  return value == 0 || is_newer(point) ? 0 : value;
}

class NormalFormNormalizer : public Normalizer {
 public:
  explicit NormalFormNormalizer(NormalForm form) {
    compose_ = form == NormalForm::kNfc || form == NormalForm::kNfkc;
    compatible_ = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
    UErrorCode status = U_ZERO_ERROR;
    canonical_ = unorm2_getNFCInstance(&status);
    decomposing_ = compatible_ ? unorm2_getNFKCInstance(&status) : canonical_;
    if (U_FAILURE(status)) throw Error(str("ICU has no normalisation data: ", u_errorName(status)));
    quick_check_ = compatible_ ? (compose_ ? UCHAR_NFKC_QUICK_CHECK : UCHAR_NFKD_QUICK_CHECK)
                               : (compose_ ? UCHAR_NFC_QUICK_CHECK : UCHAR_NFD_QUICK_CHECK);
  }

  bool is_identity(std::string_view text) const override {
    const unsigned char first_unsafe = compose_ && !compatible_ ? 0xCC : 0xC2;  // U+0300; U+0080.
    for (std::size_t at = 0; at < text.size();) {
      if (static_cast<unsigned char>(text[at]) < first_unsafe) {
        ++at;
        continue;
      }
      const char32_t point = next_point(text, at);
      const auto icu = static_cast<UChar32>(point);
      if (u_getCombiningClass(icu) != 0 || u_getIntPropertyValue(icu, quick_check_) != UNORM_YES) return false;
    }
    return true;
  }

  void apply(AlignedText& text) const override {
    if (is_identity(text.bytes)) return;
    const std::vector<Character> decomposed = decompose(text.bytes);
    std::vector<Change> changes;
    changes.reserve(decomposed.size());
    if (compose_) {
      compose(decomposed, changes);
    } else {
      for (const Character& character : decomposed) changes.push_back({character.point, character.change});
    }
    text.transform(0, text.bytes.size(), changes, 0);
  }

 private:
  void decompose_point(char32_t point, std::vector<Character>& out) const {
    char16_t buffer[64];
    UErrorCode status = U_ZERO_ERROR;
    const std::int32_t length = point < 0x80 || is_newer(point)
                                    ? -1
                                    : unorm2_getDecomposition(decomposing_, static_cast<UChar32>(point),
                                                              reinterpret_cast<UChar*>(buffer), 64, &status);
    if (length < 0 || U_FAILURE(status)) {
      out.push_back({point, 0, combining_class(point)});
      return;
    }
    for (std::int32_t at = 0; at < length;) {
      char32_t part = buffer[at++];
      if (part >= 0xD800 && part < 0xDC00 && at < length)
        part = 0x10000 + ((part - 0xD800) << 10) + (buffer[at++] - 0xDC00u);
      out.push_back({part, out.empty() ? 0 : 1, combining_class(part)});
    }
  }

  std::vector<Character> decompose(std::string_view text) const {
    std::vector<Character> all, parts;
    all.reserve(text.size());
    std::size_t unsorted = 0;  // Where the present run of combining marks begins.
    const auto sort = [&] {
      std::stable_sort(all.begin() + static_cast<std::ptrdiff_t>(unsorted), all.end(),
                       [](const Character& a, const Character& b) { return a.combining_class < b.combining_class; });
    };
    for (std::size_t at = 0; at < text.size();) {
      parts.clear();
      decompose_point(next_point(text, at), parts);
      for (const Character& part : parts) {
        if (part.combining_class == 0) {
          sort();
          unsorted = all.size();
        }
        all.push_back(part);
      }
    }
    sort();
    return all;
  }

  char32_t composite(char32_t first, char32_t second) const {
    const UChar32 point = unorm2_composePair(canonical_, static_cast<UChar32>(first), static_cast<UChar32>(second));
    return point < 0 || is_newer(static_cast<char32_t>(point)) ? 0 : static_cast<char32_t>(point);
  }

  /// Joins each starter with the marks after it that nothing blocks. A composite takes the sum of the changes, less one
  /// for the character that vanished.
  void compose(const std::vector<Character>& characters, std::vector<Change>& out) const {
    bool has_starter = false;
    std::size_t starter = 0;
    int last_class = -1;  // Of the marks kept behind the starter; -1: none.
    for (const Character& character : characters) {
      if (has_starter && (last_class < 0 || last_class < character.combining_class)) {
        if (const char32_t joined = composite(out[starter].point, character.point)) {
          out[starter].point = joined;
          out[starter].change += character.change - 1;
          continue;
        }
      }
      if (character.combining_class == 0) {
        has_starter = true;
        starter = out.size();
        last_class = -1;
      } else if (has_starter) {
        last_class = character.combining_class;
      }
      out.push_back({character.point, character.change});
    }
  }

  bool compose_ = false, compatible_ = false;
  const UNormalizer2* canonical_ = nullptr;
  const UNormalizer2* decomposing_ = nullptr;
  UProperty quick_check_ = UCHAR_NFC_QUICK_CHECK;
};

}  // namespace

std::unique_ptr<Normalizer> make_normal_form(NormalForm form) { return std::make_unique<NormalFormNormalizer>(form); }

}  // namespace glassformer::text
