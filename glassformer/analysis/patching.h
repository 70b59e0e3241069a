#pragma once

#include <functional>

#include "glassformer/trace/trace.h"

namespace glassformer {

/// A number from a run's logits at the metric's positions: `batch pos d_vocab`.
struct Metric {
  std::function<double(const at::Tensor& logits)> value;
  Positions positions = std::vector<int64_t>{-1};
};

/// logit(answer) - logit(versus) at one position, averaged over the batch.
Metric logit_difference(int64_t answer, int64_t versus, int64_t position = -1);

struct PatchOptions {
  std::string activation =
      "resid_pre";  // A node of the blocks by its short name: resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, …
  bool by_position = true;      // One patch for each position; otherwise all positions at once.
  bool by_head = false;         // One patch for each head; for nodes with a head axis.
  std::vector<int64_t> layers;  // Empty: all.
  std::function<void(int64_t done, int64_t total)> progress;
};

struct PatchResult {
  std::vector<std::string> axes;    // Of `values`: "layer", and "pos", "head" where asked for.
  at::Tensor values;                // float64: the metric in the corrupted run with that one value from the clean run.
  double clean = 0, corrupted = 0;  // The metric in the runs themselves.

  /// 0 where a patch does nothing, 1 where it restores the clean run: (values - corrupted) / (clean - corrupted).
  at::Tensor recovered() const;
};

/// Activation patching (Meng et al., 2022; Wang et al., 2022): for each place, the corrupted run with the clean run's
/// value there. Both traces must have equal length and batch (`ShapeError`). Computed on forks: layers before the
/// place, and positions before it, are never computed again.
PatchResult activation_patching(Trace& clean, Trace& corrupted, const Metric& metric, const PatchOptions& options = {});

}  // namespace glassformer
