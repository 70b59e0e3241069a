#include "glassformer/graph/mask.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

namespace glassformer {

namespace {

// `allowed` (`query_pos key_pos`, or undefined: all) with the rows of `mask` as it has them: `batch query_pos key_pos`.
at::Tensor with_queries_masked(at::Tensor allowed, const RowSet& rows, int64_t n_keys, const QueryMask& mask) {
  const int64_t batch = mask.allowed.size(0), known = std::min(n_keys, mask.allowed.size(2));
  if (!allowed.defined()) allowed = at::ones({rows.count(), n_keys}, mask.allowed.options());
  allowed = allowed.unsqueeze(0).repeat({batch, 1, 1});
  int64_t place = 0;
  for (const Interval& interval : rows.intervals()) {
    const Interval own{std::max(interval.begin, mask.first_row), std::min(interval.end, mask.end_row())};
    if (own.begin < own.end) {
      const at::Tensor target = allowed.narrow(1, place + own.begin - interval.begin, own.size());
      target.zero_();
      target.narrow(2, 0, known)
          .copy_(mask.allowed.narrow(1, own.begin - mask.first_row, own.size()).narrow(2, 0, known));
    }
    place += interval.size();
  }
  return allowed;
}

}  // namespace

bool is_plain_causal(const RowSet& rows, int64_t n_keys, const MaskOptions& options) {
  const bool narrow = options.window > 0 && options.window < n_keys;
  return rows.contiguous() && rows.first() == 0 && rows.end() == n_keys && !narrow && !options.key_mask.defined() &&
         options.query_mask == nullptr;
}

at::Tensor allowed_keys(const RowSet& rows, int64_t n_keys, const MaskOptions& options, at::Device device) {
  const bool narrow = options.window > 0 && options.window < n_keys;
  const bool all_before = rows.first() + 1 >= n_keys;
  at::Tensor allowed;
  if (!all_before || narrow) {
    const auto longs = at::TensorOptions(at::kLong).device(device);
    const at::Tensor queries =
        (rows.contiguous() ? at::arange(rows.first(), rows.end(), longs) : at::tensor(rows.rows(), longs)).unsqueeze(1);
    const at::Tensor keys = at::arange(n_keys, longs).unsqueeze(0);
    allowed = keys <= queries;
    if (narrow) allowed = allowed.logical_and(keys > queries - options.window);
  }
  if (options.query_mask != nullptr)
    allowed = with_queries_masked(allowed, rows, n_keys, *options.query_mask).unsqueeze(1);
  if (!options.key_mask.defined()) return allowed;
  const at::Tensor seen = options.key_mask.to(at::kBool).unsqueeze(1).unsqueeze(1);
  return allowed.defined() ? seen.logical_and(allowed) : seen.expand({seen.size(0), 1, rows.count(), n_keys});
}

}  // namespace glassformer
