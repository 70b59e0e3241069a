#pragma once
// Sets of positions, as sorted half-open intervals that don't touch.

#include <cstdint>
#include <vector>

namespace glassformer {

struct Interval {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Interval&) const = default;
};

class RowSet {
 public:
  RowSet() = default;
  RowSet(int64_t begin, int64_t end) {
    if (begin < end) intervals_.push_back({begin, end});
  }
  /// From positions in any order; repeated ones count once.
  static RowSet of(std::vector<int64_t> rows);

  const std::vector<Interval>& intervals() const { return intervals_; }
  bool empty() const { return intervals_.empty(); }
  int64_t first() const { return intervals_.front().begin; }
  int64_t end() const { return intervals_.back().end; }
  int64_t count() const;
  bool contiguous() const { return intervals_.size() <= 1; }
  bool contains(int64_t row) const;
  std::vector<int64_t> rows() const;

  void add(Interval interval);
  RowSet united(const RowSet& other) const;
  RowSet without(const RowSet& other) const;
  RowSet within(int64_t begin, int64_t end) const;
  bool operator==(const RowSet&) const = default;

 private:
  std::vector<Interval> intervals_;
};

}  // namespace glassformer
