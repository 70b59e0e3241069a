#pragma once

#include <cstdint>

#include "glassformer/io/dtype.h"

namespace glassformer {

/// Turns `count` elements of a quantised type (a whole number of blocks at `blocks`) into float32 at `out`, with the
/// same roundings, in the same order, as the `gguf` Python package. Also takes F16, BF16, F32 and F64.
void dequantise(DType dtype, const std::byte* blocks, int64_t count, float* out);

}  // namespace glassformer
