#pragma once
// The one place that says which keys a query may see.

#include <ATen/core/Tensor.h>

#include "glassformer/graph/node.h"

namespace glassformer {

struct MaskOptions {
  int64_t window = 0;                     // Keys that a query sees, itself among them; 0 means all before it.
  at::Tensor key_mask;                    // `batch key_pos`, true where a key may be seen; undefined where all may.
  const QueryMask* query_mask = nullptr;  // In the place of order and window, for its queries.
};

/// Whether each query at `rows` sees each of the first `n_keys` keys: bool, `query_pos key_pos`, or
/// `batch 1 query_pos key_pos` with a key or query mask. Undefined where every query sees every key.
at::Tensor allowed_keys(const RowSet& rows, int64_t n_keys, const MaskOptions& options, at::Device device);

/// True where `allowed_keys` is the plain triangle that fused kernels call causal.
bool is_plain_causal(const RowSet& rows, int64_t n_keys, const MaskOptions& options);

}  // namespace glassformer
