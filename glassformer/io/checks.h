#pragma once
// What the readers of this folder share: arithmetic that can't overflow, and names from files made fit for messages.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "glassformer/io/mapped_file.h"

namespace glassformer {

/// `'name'` for a message: on one line, valid UTF-8, and cut where a damaged file makes it very long.
std::string quote(std::string_view name);

/// Whether `text` is valid UTF-8.
bool is_utf8(std::string_view text);

/// The product of `shape`, or nothing where the sizes that aren't zero multiply to more than an int64 holds: such a
/// tensor has strides that overflow, even when it is empty.
std::optional<int64_t> element_count(std::span<const int64_t> shape);

/// `[2, 3]`
std::string shape_text(std::span<const int64_t> shape);

/// Raises `FileError` where `file` is the small text that Git leaves in place of a large file.
void refuse_lfs_pointer(const MappedFile& file);

}  // namespace glassformer
