#pragma once

#include <ATen/core/Tensor.h>

namespace glassformer {

/// `x` (row in) times the transpose of `weight` (out in), plus `bias` (out; may be undefined): row out.
at::Tensor linear_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace glassformer
