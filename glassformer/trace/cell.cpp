#include "glassformer/trace/cell.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace glassformer {

// The first chunk that ends after `row`.
std::vector<Cell::Chunk>::const_iterator Cell::first_after(int64_t row) const {
  return std::upper_bound(chunks_.begin(), chunks_.end(), row,
                          [](int64_t at, const Chunk& chunk) { return at < chunk.rows.end; });
}

void Cell::insert(const RowSet& rows, const at::Tensor& value, bool growing) {
  int64_t offset = 0;
  for (const Interval& interval : rows.intervals()) {
    const at::Tensor part = rows.contiguous() ? value : value.narrow(row_axis_, offset, interval.size());
    offset += interval.size();
    if (growing && grow(interval, part)) continue;
    chunks_.insert(first_after(interval.begin), {interval, part, {}});
  }
  valid_ = valid_.united(rows);
  bytes_ += value.numel() * static_cast<int64_t>(value.element_size());
}

int64_t Cell::begin_of(int64_t row) const {
  for (auto interval = valid_.intervals().rbegin(); interval != valid_.intervals().rend(); ++interval)
    if (interval->begin <= row) return row < interval->end ? interval->begin : row + 1;
  return row + 1;
}

bool Cell::has_room(const Chunk& chunk, int64_t count) const {
  const int64_t used = chunk.rows.size();
  return chunk.buffer && chunk.buffer->used == used && used + count <= chunk.buffer->rows.size(row_axis_);
}

std::shared_ptr<Cell::Buffer> Cell::buffer_with(const at::Tensor& value, int64_t room) const {
  std::vector<int64_t> shape = value.sizes().vec();
  const int64_t used = shape[static_cast<size_t>(row_axis_)];
  shape[static_cast<size_t>(row_axis_)] = std::max<int64_t>(room, 64);
  auto buffer = std::make_shared<Buffer>(Buffer{at::empty(shape, value.options()), used});
  buffer->rows.narrow(row_axis_, 0, used).copy_(value);
  return buffer;
}

bool Cell::grow(Interval rows, const at::Tensor& value) {
  if (chunks_.empty() || chunks_.back().rows.end != rows.begin) return false;
  Chunk& last = chunks_.back();
  const int64_t used = last.rows.size(), needed = used + rows.size();
  if (!has_room(last, rows.size())) {
    if (last.buffer && last.buffer->used != used) return false;  // Another cell went on there: let it be.
    last.buffer = buffer_with(last.value, 2 * needed);
  }
  last.buffer->rows.narrow(row_axis_, used, rows.size()).copy_(value);
  last.buffer->used = needed;
  last.rows.end = rows.end;
  last.value = last.buffer->rows.narrow(row_axis_, 0, needed);
  return true;
}

void Cell::go_on_from(const Cell& before, int64_t end) {
  if (before.chunks_.empty() || before.chunks_.back().rows.end != end || !has_room(before.chunks_.back(), 1)) return;
  chunks_.push_back(before.chunks_.back());
  valid_ = RowSet(chunks_.back().rows.begin, end);
}

void Cell::join(Interval rows, const at::Tensor& value) {
  const auto buffer = buffer_with(value, 2 * rows.size());
  chunks_ = {{rows, buffer->rows.narrow(row_axis_, 0, rows.size()), buffer}};
  valid_ = RowSet(rows.begin, rows.end);
}

void Cell::cut_to(int64_t end) {
  std::vector<Chunk> left;
  bytes_ = 0;
  for (const Chunk& chunk : chunks_) {
    const int64_t rows = std::min(chunk.rows.end, end) - chunk.rows.begin;
    if (rows <= 0) continue;
    left.push_back({{chunk.rows.begin, chunk.rows.begin + rows}, chunk.value.narrow(row_axis_, 0, rows), nullptr});
    bytes_ += left.back().value.numel() * static_cast<int64_t>(left.back().value.element_size());
  }
  chunks_ = std::move(left);
  valid_ = valid_.within(0, end);
  if (shelf_ != nullptr) shelf_->update(*this);
}

void Cell::collect(Interval rows, std::vector<at::Tensor>& pieces) const {
  for (auto chunk = first_after(rows.begin); chunk != chunks_.end() && chunk->rows.begin < rows.end; ++chunk) {
    const Interval part{std::max(rows.begin, chunk->rows.begin), std::min(rows.end, chunk->rows.end)};
    const bool whole = part == chunk->rows;
    pieces.push_back(whole ? chunk->value
                           : chunk->value.narrow(row_axis_, part.begin - chunk->rows.begin, part.size()));
  }
}

}  // namespace glassformer
