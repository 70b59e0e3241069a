#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "glassformer/io/stored_tensor.h"

namespace glassformer {

/// A value of GGUF's metadata. Integers of every width are int64 (an unsigned one above its range raises), both float
/// widths are double; arrays hold one kind each.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;

/// A GGUF file of version 2 or 3, little-endian, with every count, length and offset checked before use.
struct GgufFile {
  std::shared_ptr<MappedFile> file;
  int64_t version = 0;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<StoredTensor> tensors;

  const std::string& path() const { return file->path(); }

  /// The value of `key` as `T` (int64_t also serves a double, and the other way round where it is whole).
  /// Raises `FileError` with the key, what was found and what was expected.
  template <typename T>
  const T& at(std::string_view key) const;

  /// The same, or `fallback` where the key is missing.
  template <typename T>
  T get(std::string_view key, T fallback) const;
};

/// Reads the header and the tensor table. Raises `FileError`; `UnsupportedError` for a tensor type that Glassformer
/// lacks.
GgufFile read_gguf(const std::shared_ptr<MappedFile>& file);

}  // namespace glassformer
