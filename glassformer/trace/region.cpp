#include "glassformer/trace/region.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <numeric>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

bool is_run(const std::vector<int64_t>& indices) {
  for (size_t i = 1; i < indices.size(); ++i)
    if (indices[i] != indices[i - 1] + 1) return false;
  return true;
}

std::string index_text(const std::optional<std::vector<int64_t>>& indices) {
  if (!indices) return ":";
  if (indices->size() == 1) return std::to_string(indices->front());
  if (indices->empty()) return "[]";
  if (is_run(*indices)) return glassformer::str(indices->front(), ":", indices->back() + 1);
  return glassformer::str("[", indices->front(), ", … ", indices->back(), "]");
}

// The numbers 0, 1, … of those members of `wanted` (sorted) that are in `rows`, counted within each.
struct Matches {
  std::vector<int64_t> in_wanted, in_rows;
};

Matches match(const std::vector<int64_t>& wanted, const RowSet& rows) {
  Matches matches;
  const std::vector<int64_t> all = rows.rows();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto found = std::lower_bound(all.begin(), all.end(), wanted[i]);
    if (found == all.end() || *found != wanted[i]) continue;
    matches.in_wanted.push_back(static_cast<int64_t>(i));
    matches.in_rows.push_back(found - all.begin());
  }
  return matches;
}

at::Tensor select_rows(const at::Tensor& tensor, int64_t axis, const std::vector<int64_t>& rows) {
  if (rows.empty()) return tensor.narrow(axis, 0, 0);
  if (is_run(rows)) return tensor.narrow(axis, rows.front(), static_cast<int64_t>(rows.size()));
  return tensor.index_select(axis, at::tensor(rows, at::TensorOptions(at::kLong)).to(tensor.device()));
}

// Puts `value` into the product of `indices` within `target`.
void put(at::Tensor target, const std::vector<std::optional<std::vector<int64_t>>>& indices, const at::Tensor& value) {
  const bool runs =
      std::all_of(indices.begin(), indices.end(), [](const auto& axis) { return !axis || is_run(*axis); });
  if (runs) {
    for (size_t axis = 0; axis < indices.size(); ++axis)
      if (indices[axis]) target = select_rows(target, static_cast<int64_t>(axis), *indices[axis]);
    target.copy_(value);
    return;
  }
  c10::List<std::optional<at::Tensor>> grid;
  std::vector<int64_t> extent;
  const auto n_axes = indices.size();
  for (size_t axis = 0; axis < n_axes; ++axis) {
    const auto longs = at::TensorOptions(at::kLong);
    at::Tensor index =
        indices[axis] ? at::tensor(*indices[axis], longs) : at::arange(target.size(static_cast<int64_t>(axis)), longs);
    extent.push_back(index.size(0));
    std::vector<int64_t> view(n_axes, 1);
    view[axis] = index.size(0);
    grid.push_back(index.view(view).to(target.device()));
  }
  target.index_put_(grid, value.expand(extent));
}

}  // namespace

void require_plain(const at::Tensor& value, const std::string& name) {
  const char* found = nullptr;
  if (!value.defined()) {
    found = "nothing";
  } else if (value.layout() != at::kStrided) {
    found = "a sparse one";
  } else if (value.key_set().has_any(
                 c10::DispatchKeySet({at::DispatchKey::FuncTorchBatched, at::DispatchKey::FuncTorchGradWrapper}))) {
    found = "one of a functorch transform (vmap, grad)";
  } else if (value.key_set().has(at::DispatchKey::Python)) {
    found = "one of a class that stands in for torch's, as fake tensors do";
  } else if (value.is_meta()) {
    found = "one without numbers (meta)";
  }
  if (found != nullptr) throw InputError(str(name, ": a value must be a dense tensor; found ", found));
}

Region Region::where(at::Tensor mask) {
  Region region;
  region.mask_ = std::move(mask);
  return region;
}

Region& Region::at(std::string axis, std::vector<int64_t> indices) {
  axes_.push_back({std::move(axis), 0, std::move(indices), false});
  return *this;
}

Region& Region::at(std::string axis, int64_t index) {
  axes_.push_back({std::move(axis), 0, {index}, true});
  return *this;
}

Region& Region::at_axis(size_t axis, std::vector<int64_t> indices, bool drop) {
  axes_.push_back({"", axis, std::move(indices), drop});
  return *this;
}

Region Region::from(const Node& node, int64_t begin, int64_t end) const {
  const auto is_of_rows = [&](const AxisIndices& given) {
    return (given.word.empty() ? static_cast<int>(given.axis) : axis_named(node, given.word)) == node.row_axis;
  };
  Region region = *this;
  if (begin > 0 && !mask_.defined() && std::none_of(axes_.begin(), axes_.end(), is_of_rows))
    region.at_axis(static_cast<size_t>(node.row_axis), RowSet(begin, end).rows());
  return region;
}

Overlay::Overlay(const Node& node, at::IntArrayRef shape, const Region& region, const at::Tensor& value,
                 at::ScalarType dtype, at::Device device)
    : shape_(shape.vec()), row_axis_(node.row_axis), weighting_(node.is_weighting()), absent_(node.absent) {
  indices_.resize(shape_.size());
  std::vector<bool> dropped(shape_.size(), false);
  if (region.mask().defined()) {
    read_mask(region);
  } else {
    dropped = read_axes(node, region);
  }
  require_plain(value, node.name);
  read_value(value.to(at::TensorOptions(device).dtype(dtype), false, true), dropped, node.name);
  look_for_later_keys();
}

void Overlay::look_for_later_keys() {
  if (!weighting_) return;
  std::vector<int64_t> shape = shape_;  // Of its own rows only: a step of a generation has one.
  shape[2] = rows_.count();
  const at::TensorOptions longs = value_.options().dtype(at::kLong);
  const at::Tensor queries = at::tensor(rows_.rows(), at::TensorOptions(at::kLong)).to(value_.device()).unsqueeze(1);
  const at::Tensor later = at::arange(shape_[3], longs).gt(queries);
  const at::Tensor weights = applied(at::full(shape, absent_, value_.options()), rows_);
  sees_later_keys_ = (weights != absent_).logical_and(later).any().item<bool>();
}

Overlay Overlay::before(int64_t length) const {
  Overlay cut = *this;
  const auto shorten = [&](size_t axis) {
    const auto dim = static_cast<int64_t>(axis);
    const int64_t size = std::min(shape_[axis], length);
    cut.shape_[axis] = size;
    if (cut.mask_.defined()) cut.mask_ = cut.mask_.narrow(dim, 0, size);
    std::vector<int64_t> kept;  // The numbers of those indices that remain.
    if (auto& indices = cut.indices_[axis]; indices) {
      for (size_t i = 0; i < indices->size(); ++i)
        if ((*indices)[i] < size) kept.push_back(static_cast<int64_t>(i));
      std::erase_if(*indices, [&](int64_t index) { return index >= size; });
    } else {
      kept.resize(static_cast<size_t>(size));
      std::iota(kept.begin(), kept.end(), int64_t{0});
    }
    if (cut.value_.size(dim) > 1) cut.value_ = select_rows(cut.value_, dim, kept);
  };
  shorten(static_cast<size_t>(row_axis_));
  if (weighting_) shorten(3);
  cut.rows_ = rows_.within(0, length);
  cut.look_for_later_keys();
  return cut;
}

std::vector<bool> Overlay::read_axes(const Node& node, const Region& region) {
  std::vector<bool> dropped(shape_.size(), false);
  for (const Region::AxisIndices& given : region.axes()) {
    size_t axis = given.axis;
    if (!given.word.empty()) axis = static_cast<size_t>(axis_named(node, given.word));
    if (axis >= shape_.size())
      throw InputError(
          str(node.name, " has ", shape_.size(), " axes (", shape_words(node), "); found an index for one more"));
    std::vector<int64_t> indices = given.indices;
    for (int64_t& index : indices) {
      if (index < -shape_[axis] || index >= shape_[axis])
        throw InputError(
            str(node.name, ": index ", index, " is outside axis '", node.axes[axis].word, "' of size ", shape_[axis]));
      if (index < 0) index += shape_[axis];
    }
    std::vector<int64_t> sorted = indices;
    std::sort(sorted.begin(), sorted.end());
    if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
      throw InputError(str(node.name, ": index ", *twice, " of axis '", node.axes[axis].word, "' is given twice"));
    dropped[axis] = given.drop;
    const bool all = static_cast<int64_t>(indices.size()) == shape_[axis] && is_run(indices);
    if (!all) indices_[axis] = std::move(indices);
  }
  whole_rows_ = true;
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    if (static_cast<int>(axis) != row_axis_ && indices_[axis]) whole_rows_ = false;
    text_ += (axis == 0 ? "[" : ", ") + index_text(indices_[axis]);
  }
  text_ += "]";
  const auto& rows = indices_[static_cast<size_t>(row_axis_)];
  rows_ = rows ? RowSet::of(*rows) : RowSet(0, shape_[static_cast<size_t>(row_axis_)]);
  const bool empty =
      std::any_of(indices_.begin(), indices_.end(), [](const auto& axis) { return axis && axis->empty(); });
  if (empty) rows_ = RowSet();
  // The keys of later segments are not this overlay's.
  if (node.has_keys() && !indices_[3]) {
    indices_[3].emplace(static_cast<size_t>(shape_[3]));
    std::iota(indices_[3]->begin(), indices_[3]->end(), int64_t{0});
  }
  return dropped;
}

void Overlay::read_mask(const Region& region) {
  mask_ = region.mask();
  if (mask_.scalar_type() != at::kBool || mask_.sizes() != at::IntArrayRef(shape_))
    throw ShapeError(
        str("a mask must be bool of shape ", shape_text(shape_), "; found shape ", shape_text(mask_.sizes())));
  mask_ = mask_.clone();
  at::Tensor touched = mask_;
  for (int64_t axis = static_cast<int64_t>(shape_.size()) - 1; axis >= 0; --axis)
    if (axis != row_axis_) touched = touched.any(axis);
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < touched.size(0); ++row)
    if (touched[row].item<bool>()) rows.push_back(row);
  rows_ = RowSet::of(std::move(rows));
  text_ = "[mask]";
}

void Overlay::read_value(const at::Tensor& value, const std::vector<bool>& dropped, const std::string& name) {
  std::vector<int64_t> expected, with_all_axes;
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    const int64_t size = indices_[axis] ? static_cast<int64_t>(indices_[axis]->size()) : shape_[axis];
    if (!dropped[axis]) expected.push_back(size);
  }
  const auto fail = [&] {
    throw ShapeError(str(name, text_, ": expected a value of shape ", shape_text(expected),
                         " or one that broadcasts to it; found ", shape_text(value.sizes()),
                         "; to try several values, use a fork for each"));
  };
  if (value.dim() > static_cast<int64_t>(expected.size())) fail();
  const size_t missing = expected.size() - static_cast<size_t>(value.dim());
  for (size_t i = 0; i < static_cast<size_t>(value.dim()); ++i) {
    const int64_t size = value.size(static_cast<int64_t>(i));
    if (size != expected[missing + i] && size != 1) fail();
  }
  value_ = value.view(value.sizes());
  for (size_t i = 0; i < missing; ++i) value_ = value_.unsqueeze(0);
  for (size_t axis = 0; axis < shape_.size(); ++axis)
    if (dropped[axis]) value_ = value_.unsqueeze(static_cast<int64_t>(axis));
}

at::Tensor Overlay::applied(const at::Tensor& base, const RowSet& rows) const {
  const auto row_axis = static_cast<int64_t>(row_axis_);
  at::Tensor result;
  if (base.defined()) {
    const int64_t missing_keys = row_axis_ == 2 ? shape_[3] - base.size(3) : 0;
    result = missing_keys > 0 ? at::constant_pad_nd(base, {0, missing_keys}, absent_) : base.clone();
  } else {
    std::vector<int64_t> extent = shape_;
    extent[static_cast<size_t>(row_axis_)] = rows.count();
    result = at::empty(extent, value_.options());
  }
  if (mask_.defined()) {
    const std::vector<int64_t> all = rows.rows();
    std::vector<int64_t> known;
    for (int64_t row : all)
      if (row < shape_[static_cast<size_t>(row_axis_)]) known.push_back(row);
    const at::Tensor mask = select_rows(mask_.to(result.device()), row_axis, known);
    const at::Tensor value = select_rows(value_.expand(shape_), row_axis, known);
    at::Tensor part = result.narrow(row_axis, 0, static_cast<int64_t>(known.size()));
    if (row_axis_ == 2) part = part.narrow(3, 0, shape_[3]);
    part.copy_(at::where(mask, value, part));
    return result;
  }
  auto indices = indices_;
  at::Tensor value = value_;
  auto& own_rows = indices[static_cast<size_t>(row_axis_)];
  std::vector<int64_t> wanted;
  if (own_rows) {
    wanted = *own_rows;
  } else {
    wanted.resize(static_cast<size_t>(shape_[static_cast<size_t>(row_axis_)]));
    std::iota(wanted.begin(), wanted.end(), int64_t{0});
  }
  const Matches matches = match(wanted, rows);
  if (matches.in_rows.empty()) return result;
  own_rows = matches.in_rows;
  if (value.size(row_axis) > 1) value = select_rows(value, row_axis, matches.in_wanted);
  put(result, indices, value);
  return result;
}

}  // namespace glassformer
