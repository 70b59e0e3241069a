#pragma once
// Internal to trace/: computes cells. Demand goes backward through the graph, values forward; what several traces need
// of one node is laid end to end, so that matrix products stay large.

#include <vector>

#include "glassformer/trace/family.h"

namespace glassformer {

/// Rows of a node, as the values under `lineage`.
struct Request {
  Family* family = nullptr;
  Lineage* lineage = nullptr;
  NodeId node = -1;
  RowSet rows;
};

struct EvaluateOptions {
  bool keep_requested = true;
  bool lean = false;  // Release what was computed for edited traces as soon as it was used.
  bool trim = true;   // Release afterwards what is over the budget; otherwise the caller does, once it has the values.
};

/// Makes every request's rows valid. All families must be of one model.
void evaluate(const std::vector<Request>& requests, const EvaluateOptions& options = {});

/// The rows of a valid request as one tensor, its rows in order. For nodes with keys, columns are cut or filled to
/// `n_keys`. The result may share memory with the engine: copy before handing it out (`shares_memory`).
at::Tensor gather(const Request& request, int64_t n_keys = -1);

/// The first row of `value` (whose rows are `rows`) that differs in any bit from `other`, or -1.
int64_t first_difference(const at::Tensor& value, const at::Tensor& other, const RowSet& rows, int row_axis);

}  // namespace glassformer
