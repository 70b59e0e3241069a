#include "glassformer/io/checks.h"

#include <simdjson.h>

#include "glassformer/base/errors.h"

namespace glassformer {

std::string quote(std::string_view name) {
  constexpr size_t kLongest = 120;
  constexpr const char* kHex = "0123456789abcdef";
  const bool keep_high = is_utf8(name);
  bool cut = false;
  if (name.size() > kLongest) {
    size_t end = kLongest;
    while (keep_high && end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;
    name = name.substr(0, end);
    cut = true;
  }
  std::string text = "'";
  for (const char character : name) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !keep_high)) {
      text += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      text += character;
    }
  }
  return text + (cut ? "…'" : "'");
}

bool is_utf8(std::string_view text) { return simdjson::validate_utf8(text.data(), text.size()); }

std::optional<int64_t> element_count(std::span<const int64_t> shape) {
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(product, size, &product)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

void refuse_lfs_pointer(const MappedFile& file) {
  constexpr std::string_view kMark = "version https://git-lfs";
  const auto bytes = file.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with(kMark)) {
    throw FileError(file.path(), "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
  }
}

}  // namespace glassformer
