#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "glassformer/graph/model.h"
#include "glassformer/trace/region.h"

namespace glassformer {

/// An axis whose size is not known yet: only whole, or by indices.
inline constexpr int64_t kAnyLength = 0;

/// The axis sizes of a node in a trace of this batch and length.
std::vector<int64_t> node_shape(const Model& model, const std::string& name, int64_t batch, int64_t length);

/// What stands between the brackets of `tensor[...]`, for a node with these axis sizes.
Region region_of(const pybind11::object& index, const std::vector<int64_t>& shape);

}  // namespace glassformer
