#include "glassformer/trace/shelf.h"

#include "glassformer/trace/lineage.h"

namespace glassformer {

Shelf::Line& Shelf::line_of(const Cell& cell) { return cell.starts_block_ ? starts_ : others_; }

void Shelf::pin(Cell& cell) {
  ++cell.pins_;
  unlink(cell);
}

void Shelf::unpin(Cell& cell) {
  --cell.pins_;
  update(cell);
}

void Shelf::keep(Cell& cell) {
  cell.kept_ = true;
  update(cell);
}

void Shelf::update(Cell& cell) {
  const int64_t bytes = cell.kept_ ? 0 : cell.bytes();
  Line& line = line_of(cell);
  line.bytes += bytes - cell.counted_;
  cell.counted_ = bytes;
  cell.shelf_ = this;
  unlink(cell);
  if (cell.kept_ || cell.pins_ > 0 || cell.valid().empty()) return;
  cell.linked_ = true;
  cell.older_ = line.newest;
  (line.newest != nullptr ? line.newest->newer_ : line.oldest) = &cell;
  line.newest = &cell;
}

void Shelf::release(Cell& cell) { cell.owner().drop(cell.node()); }

void Shelf::trim(int64_t budget) {
  while (bytes() > budget && others_.oldest != nullptr) release(*others_.oldest);
  while (starts_.bytes > budget && starts_.oldest != nullptr) release(*starts_.oldest);
}

void Shelf::remove(Cell& cell) {
  unlink(cell);
  line_of(cell).bytes -= cell.counted_;
}

void Shelf::unlink(Cell& cell) {
  if (!cell.linked_) return;
  Line& line = line_of(cell);
  (cell.older_ != nullptr ? cell.older_->newer_ : line.oldest) = cell.newer_;
  (cell.newer_ != nullptr ? cell.newer_->older_ : line.newest) = cell.older_;
  cell.older_ = cell.newer_ = nullptr;
  cell.linked_ = false;
}

}  // namespace glassformer
