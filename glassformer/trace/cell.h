#pragma once
// Cells: one value of one node, row by row as it gets computed.

#include <ATen/core/Tensor.h>

#include <vector>

#include "glassformer/graph/rows.h"

namespace glassformer {

class Cell {
 public:
  explicit Cell(int row_axis) : row_axis_(row_axis) {}

  const RowSet& valid() const { return valid_; }
  /// Takes `value`, whose rows are `rows` in order; none of them may be valid yet. With `growing`, rows that follow the
  /// last ones go into one buffer that grows geometrically.
  void insert(const RowSet& rows, const at::Tensor& value, bool growing = false);
  /// Adds the parts of [begin, end) to `pieces`, in order. All of these rows must be valid.
  void collect(Interval rows, std::vector<at::Tensor>& pieces) const;
  void clear();
  int64_t bytes() const;

  bool keep = false;     // Never released.
  int64_t last_use = 0;  // The evaluation that used it last.

 private:
  struct Chunk {
    Interval rows;
    at::Tensor value;
    at::Tensor buffer;  // Where `value` is the beginning of a larger one.
  };
  bool grow(Interval rows, const at::Tensor& value);

  int row_axis_;
  RowSet valid_;
  std::vector<Chunk> chunks_;  // Sorted by rows.
};

}  // namespace glassformer
