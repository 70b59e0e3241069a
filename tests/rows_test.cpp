#include "glassformer/graph/rows.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>

using namespace glassformer;

TEST_CASE("row sets behave as sets of numbers") {
  std::mt19937 random(7);
  const auto draw = [&] {
    std::vector<int64_t> rows(random() % 6);
    for (int64_t& row : rows) row = static_cast<int64_t>(random() % 12);
    return rows;
  };
  const auto as_set = [](const RowSet& rows) {
    const std::vector<int64_t> list = rows.rows();
    return std::set<int64_t>(list.begin(), list.end());
  };
  for (int round = 0; round < 2000; ++round) {
    const std::vector<int64_t> a = draw(), b = draw();
    const RowSet left = RowSet::of(a), right = RowSet::of(b);
    std::set<int64_t> united(a.begin(), a.end()), rest(a.begin(), a.end()), inside;
    united.insert(b.begin(), b.end());
    for (int64_t row : b) rest.erase(row);
    for (int64_t row : a)
      if (row >= 3 && row < 9) inside.insert(row);
    CHECK(as_set(left.united(right)) == united);
    CHECK(as_set(left.without(right)) == rest);
    CHECK(as_set(left.within(3, 9)) == inside);
    CHECK(left.united(right) == RowSet::of({united.begin(), united.end()}));
    CHECK(left.count() == static_cast<int64_t>(std::set<int64_t>(a.begin(), a.end()).size()));
    for (int64_t row = 0; row < 12; ++row) CHECK(left.contains(row) == (std::count(a.begin(), a.end(), row) > 0));
  }
}
