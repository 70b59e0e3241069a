#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "glassformer/trace/region.h"

namespace glassformer {

/// An axis whose size is not known yet: only whole, or by indices.
inline constexpr int64_t kAnyLength = 0;

/// What stands between the brackets of `tensor[...]`, for a node with these axis sizes.
Region region_of(const pybind11::object& index, const std::vector<int64_t>& shape);

}  // namespace glassformer
