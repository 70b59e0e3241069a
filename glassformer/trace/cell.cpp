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

bool Cell::grow(Interval rows, const at::Tensor& value) {
  if (chunks_.empty() || chunks_.back().rows.end != rows.begin) return false;
  Chunk& last = chunks_.back();
  const int64_t used = last.rows.size(), needed = used + rows.size();
  if (!last.buffer.defined() || last.buffer.size(row_axis_) < needed) {
    std::vector<int64_t> shape = last.value.sizes().vec();
    shape[static_cast<size_t>(row_axis_)] = std::max<int64_t>(2 * needed, 64);
    last.buffer = at::empty(shape, last.value.options());
    last.buffer.narrow(row_axis_, 0, used).copy_(last.value);
  }
  last.buffer.narrow(row_axis_, used, rows.size()).copy_(value);
  last.rows.end = rows.end;
  last.value = last.buffer.narrow(row_axis_, 0, needed);
  return true;
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
