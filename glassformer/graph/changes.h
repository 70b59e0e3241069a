#pragma once
// Internal to graph/, trace/ and analysis/: whether tensors were changed in place.

#include <ATen/core/Tensor.h>

namespace glassformer {

/// How often a tensor was changed in place, as torch counts it; 0 for inference tensors, which count nothing.
inline int64_t changes_of(const at::Tensor& tensor) {
  const c10::VariableVersion& version = tensor.unsafeGetTensorImpl()->version_counter();
  return version.enabled() ? version.current_version() : 0;
}

}  // namespace glassformer
