#include "glassformer/base/errors.h"

#include <algorithm>
#include <numeric>

namespace glassformer {
namespace {

size_t edit_distance(std::string_view from, std::string_view to) {
  std::vector<size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= from.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= to.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (from[i - 1] == to[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[to.size()];
}

}  // namespace

std::vector<std::string> nearest_names(std::string_view name, const std::vector<std::string>& candidates,
                                       size_t count) {
  constexpr size_t kLongestName = 200;  // Longer ones are no slip of the pen, and the distance is quadratic.
  if (name.size() > kLongestName) return {};
  std::vector<std::pair<size_t, const std::string*>> ranked;
  for (const std::string& candidate : candidates) {
    const bool part = !name.empty() && candidate.find(name) != std::string::npos;
    const size_t distance = part ? 1 : edit_distance(name, candidate);
    if (distance <= std::max<size_t>(3, name.size() / 2)) ranked.emplace_back(distance, &candidate);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(count, ranked.size()); ++i) names.push_back(*ranked[i].second);
  return names;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates) {
  std::string text;
  for (const std::string& near : nearest_names(name, candidates)) text += (text.empty() ? "; nearest: " : ", ") + near;
  return text;
}

}  // namespace glassformer
