#include "glassformer/graph/rows.h"

#include <algorithm>

namespace glassformer {

RowSet RowSet::of(std::vector<int64_t> rows) {
  std::sort(rows.begin(), rows.end());
  RowSet set;
  for (int64_t row : rows) {
    if (!set.empty() && set.end() >= row) {
      set.intervals_.back().end = std::max(set.end(), row + 1);
    } else {
      set.intervals_.push_back({row, row + 1});
    }
  }
  return set;
}

int64_t RowSet::count() const {
  int64_t total = 0;
  for (const Interval& interval : intervals_) total += interval.size();
  return total;
}

bool RowSet::contains(int64_t row) const {
  return std::any_of(intervals_.begin(), intervals_.end(),
                     [row](const Interval& interval) { return interval.begin <= row && row < interval.end; });
}

std::vector<int64_t> RowSet::rows() const {
  std::vector<int64_t> rows;
  for (const Interval& interval : intervals_)
    for (int64_t row = interval.begin; row < interval.end; ++row) rows.push_back(row);
  return rows;
}

void RowSet::add(Interval interval) {
  if (interval.begin >= interval.end) return;
  if (empty() || interval.begin > end()) {
    intervals_.push_back(interval);
    return;
  }
  std::vector<Interval> merged;
  for (const Interval& own : intervals_) {
    if (own.end < interval.begin) {
      merged.push_back(own);
    } else if (own.begin > interval.end) {
      merged.push_back(interval);
      interval = own;
    } else {
      interval = {std::min(own.begin, interval.begin), std::max(own.end, interval.end)};
    }
  }
  merged.push_back(interval);
  intervals_ = std::move(merged);
}

RowSet RowSet::united(const RowSet& other) const {
  RowSet result = *this;
  for (const Interval& interval : other.intervals_) result.add(interval);
  return result;
}

RowSet RowSet::without(const RowSet& other) const {
  RowSet result;
  for (Interval rest : intervals_) {
    for (const Interval& hole : other.intervals_) {
      if (hole.end <= rest.begin || hole.begin >= rest.end) continue;
      if (hole.begin > rest.begin) result.intervals_.push_back({rest.begin, hole.begin});
      rest.begin = hole.end;
      if (rest.begin >= rest.end) break;
    }
    if (rest.begin < rest.end) result.intervals_.push_back(rest);
  }
  return result;
}

RowSet RowSet::within(int64_t begin, int64_t end) const {
  RowSet result;
  for (const Interval& interval : intervals_) {
    const Interval part{std::max(begin, interval.begin), std::min(end, interval.end)};
    if (part.begin < part.end) result.intervals_.push_back(part);
  }
  return result;
}

}  // namespace glassformer
