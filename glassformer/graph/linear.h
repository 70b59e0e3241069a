#pragma once
// Internal to graph/: the product of rows with a weight, by the kernel that is fastest for how many rows there are.

#include <ATen/core/Tensor.h>

namespace glassformer {

/// `x` (row in) times the transpose of `weight` (out in), plus `bias` (out; may be undefined): row out.
at::Tensor linear_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace glassformer
