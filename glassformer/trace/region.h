#pragma once
// Which part of a node an edit covers.

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glassformer/graph/node.h"

namespace glassformer {

/// `InputError` that names what is wrong with a value that users give: one without numbers of its own.
void require_plain(const at::Tensor& value, const std::string& name);

/// A product of index sets over a node's axes, or a mask. `Region()` is the whole node.
/// `Region().at("head", {5})` is head 5 at every position; several calls narrow further axes.
class Region {
 public:
  Region() = default;
  /// Where `mask` (bool, the node's shape) is true.
  static Region where(at::Tensor mask);

  /// Only these indices of the axis with that shape word; negative ones count from the end. The axis stays in the shape
  /// that values must fit.
  Region& at(std::string axis, std::vector<int64_t> indices);
  Region& at(std::string axis, std::initializer_list<int64_t> indices) {  // For lists of one, too: `{5}`.
    return at(std::move(axis), std::vector<int64_t>(indices));
  }
  /// Only this index; the axis drops out of the shape that values must fit.
  Region& at(std::string axis, int64_t index);
  /// The indices begin, begin + step, … before end of axis number `axis`.
  Region& at_axis(size_t axis, std::vector<int64_t> indices, bool drop = false);
  /// The same region, at positions [begin, end) where it says nothing of positions; `end` is the node's last.
  Region from(const Node& node, int64_t begin, int64_t end) const;

  struct AxisIndices {
    std::string word;  // Empty: `axis` says which.
    size_t axis = 0;
    std::vector<int64_t> indices;
    bool drop = false;
  };
  const std::vector<AxisIndices>& axes() const { return axes_; }
  const at::Tensor& mask() const { return mask_; }

 private:
  std::vector<AxisIndices> axes_;
  at::Tensor mask_;
};

/// Numbers put into a region of one node: a region with absolute indices, and values with the node's axes.
class Overlay {
 public:
  /// Checks `region` and `value` against `node` with `shape`. `value` is copied, and must have the region's shape or
  /// broadcast to it without adding axes. Raises `ShapeError`, `InputError`.
  Overlay(const Node& node, at::IntArrayRef shape, const Region& region, const at::Tensor& value, at::ScalarType dtype,
          at::Device device);

  /// What of it lies before position `length`, for a trace of that length.
  Overlay before(int64_t length) const;
  /// The positions that it touches.
  const RowSet& rows() const { return rows_; }
  /// Whether it replaces all of each row that it touches.
  bool whole_rows() const { return whole_rows_; }
  /// `base` (the node's value at `rows`, all of them in one tensor; undefined where `whole_rows` makes it superfluous)
  /// with the overlay's values put in. A new tensor.
  at::Tensor applied(const at::Tensor& base, const RowSet& rows) const;
  /// Whether it gives weight to a key after its query; for nodes of scores and patterns.
  bool sees_later_keys() const { return sees_later_keys_; }
  /// Whether it knows of keys from position `length` on; for the same nodes.
  bool has_keys_beyond(int64_t length) const { return weighting_ && shape_[3] > length; }
  /// Whether its values carry a graph.
  bool requires_grad() const { return value_.requires_grad(); }
  /// How many keys it knows of; for the same nodes.
  int64_t n_keys() const { return shape_[3]; }
  const std::string& text() const { return text_; }  // "[:, :, 5]"

 private:
  std::vector<bool> read_axes(const Node& node, const Region& region);
  void read_mask(const Region& region);
  void look_for_later_keys();
  void read_value(const at::Tensor& value, const std::vector<bool>& dropped, const std::string& name);

  std::vector<int64_t> shape_;
  int row_axis_;
  bool weighting_ = false;
  float absent_;                                              // What stands for keys that the base has no column for.
  std::vector<std::optional<std::vector<int64_t>>> indices_;  // For each axis; nullopt: all.
  at::Tensor mask_;                                           // The node's shape, or undefined.
  at::Tensor value_;                                          // Broadcasts to the region with all axes kept.
  RowSet rows_;
  bool whole_rows_ = false, sees_later_keys_ = false;
  std::string text_;
};

}  // namespace glassformer
