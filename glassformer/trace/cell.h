#pragma once
// Cells: one value of one node, row by row as it gets computed.

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "glassformer/graph/node.h"
#include "glassformer/trace/shelf.h"

namespace glassformer {

class Lineage;

class Cell {
 public:
  Cell(Lineage& owner, const Node& node)
      : owner_(owner), node_(node.id), row_axis_(node.row_axis), starts_block_(node.starts_block) {}
  ~Cell() {
    if (shelf_ != nullptr) shelf_->remove(*this);
  }
  Cell(const Cell&) = delete;
  Cell& operator=(const Cell&) = delete;

  Lineage& owner() const { return owner_; }
  NodeId node() const { return node_; }
  const RowSet& valid() const { return valid_; }
  /// Takes `value`, whose rows are `rows` in order; none of them may be valid yet. With `growing`, rows that follow the
  /// last ones go into one buffer that grows geometrically.
  void insert(const RowSet& rows, const at::Tensor& value, bool growing = false);
  /// Makes the last rows of `before`, up to row `end`, the beginning of this cell, which must be empty. It does nothing
  /// where they have no buffer with room for more, or another cell has gone on in it.
  void go_on_from(const Cell& before, int64_t end);
  /// Replaces what it has by `value` for `rows`, which must cover it, in a buffer with room for more.
  void join(Interval rows, const at::Tensor& value);
  /// Drops all rows but those before `end`.
  void cut_to(int64_t end);
  /// Where the valid rows begin that go on to `row`; `row + 1` if it isn't valid itself.
  int64_t begin_of(int64_t row) const;
  /// Adds the parts of [begin, end) to `pieces`, in order. All of these rows must be valid.
  void collect(Interval rows, std::vector<at::Tensor>& pieces) const;
  /// Of its values, without room to grow.
  int64_t bytes() const { return bytes_; }
  /// Never released.
  bool kept() const { return kept_; }
  bool pinned() const { return pins_ > 0; }

 private:
  friend class Shelf;
  // Rows that cells one after the other share, each as far as it goes.
  struct Buffer {
    at::Tensor rows;
    int64_t used = 0;
  };
  struct Chunk {
    Interval rows;
    at::Tensor value;
    std::shared_ptr<Buffer> buffer;  // Where `value` is the beginning of a larger one.
  };
  bool has_room(const Chunk& chunk, int64_t count) const;
  std::shared_ptr<Buffer> buffer_with(const at::Tensor& value, int64_t room) const;
  std::vector<Chunk>::const_iterator first_after(int64_t row) const;
  bool grow(Interval rows, const at::Tensor& value);

  Lineage& owner_;
  NodeId node_;
  int row_axis_;
  RowSet valid_;
  std::vector<Chunk> chunks_;  // Sorted by rows.
  int64_t bytes_ = 0;

  // The shelf's.
  bool starts_block_, kept_ = false, linked_ = false;
  int32_t pins_ = 0;
  int64_t counted_ = 0;
  Shelf* shelf_ = nullptr;
  Cell *older_ = nullptr, *newer_ = nullptr;
};

}  // namespace glassformer
