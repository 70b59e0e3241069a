#include "glassformer/graph/mask.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>

namespace glassformer {

bool is_plain_causal(const RowSet& rows, int64_t n_keys, const MaskOptions& options) {
  const bool narrow = options.window > 0 && options.window < n_keys;
  return rows.contiguous() && rows.first() == 0 && rows.end() == n_keys && !narrow && !options.key_mask.defined();
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
  if (!options.key_mask.defined()) return allowed;
  const at::Tensor seen = options.key_mask.to(at::kBool).unsqueeze(1).unsqueeze(1);
  return allowed.defined() ? seen.logical_and(allowed) : seen.expand({seen.size(0), 1, rows.count(), n_keys});
}

}  // namespace glassformer
