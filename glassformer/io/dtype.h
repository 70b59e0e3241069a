#pragma once
// The element types of tensors in files: plain ones, and GGUF's quantised blocks.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace glassformer {

enum class DType : uint8_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt64,
  kInt32,
  kInt16,
  kInt8,
  kUInt8,
  kBool,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
};

/// How a type is laid out: `block_bytes` bytes hold `block_size` elements (1 for the plain types).
struct DTypeLayout {
  std::string_view name;
  int64_t block_size;
  int64_t block_bytes;
};

/// The name and layout of `dtype`; names are those of the file formats ("F32", "BF16", "Q4_K").
const DTypeLayout& layout(DType dtype);

inline bool is_quantised(DType dtype) { return layout(dtype).block_size > 1; }

}  // namespace glassformer
