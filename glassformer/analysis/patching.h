#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glassformer/trace/trace.h"

namespace glassformer {

/// A number (a tensor of one) from a run's logits at the metric's positions: `batch pos d_vocab`.
struct Metric {
  std::function<at::Tensor(const at::Tensor& logits)> value;
  Positions positions = std::vector<int64_t>{-1};
};

/// Numbers that are to stand in a region of a node, as `Trace::set` takes them.
struct Patch {
  std::string node;
  at::Tensor value;
  Region region;
};

/// A fork of a trace with one patch in it.
class PatchedRun {
 public:
  explicit PatchedRun(Trace trace) : trace_(std::move(trace)) {}

  /// `batch pos d_vocab` at these positions, without a graph. Computed when it is first asked for.
  at::Tensor logits(const Positions& positions = std::nullopt);

 private:
  friend class PatchSweep;

  Trace trace_;
  std::vector<std::pair<Positions, at::Tensor>> known_;
};

/// Many patches of one trace, each by itself: `patch(i)` says what is patched in run i of `n_runs`, and `take(i, run)`
/// is called with each run in order. Runs are computed together, at the positions that `take` asked for last in a run
/// before them (in the first ones at `positions`, if they are given); what it asks for besides is computed run by run.
/// Computed on forks: what lies before a patch is never computed again.
void sweep_patches(Trace& trace, int64_t n_runs, const std::function<Patch(int64_t i)>& patch,
                   const std::function<void(int64_t i, const std::shared_ptr<PatchedRun>& run)>& take,
                   const std::optional<Positions>& positions = std::nullopt);

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

/// What patching a node would change, estimated: the node's shape without its last axis.
struct NodeAttribution {
  std::string node;
  at::Tensor values;
};

/// Attribution patching (Nanda, 2023; Syed et al., 2023): for each entry of a node the first-order estimate of how the
/// metric of the corrupted run would change with the clean run's vector there: (clean - corrupted) times the metric's
/// gradient in the corrupted run, summed over the last axis. One backward pass for all `nodes` (none given: all that
/// the metric depends on, in computing order). Both traces must have equal length and batch (`ShapeError`);
/// `InputError` where the metric does not depend on a node that was named, or is made without torch's operations.
std::vector<NodeAttribution> attribution_patching(Trace& clean, Trace& corrupted, const Metric& metric,
                                                  const std::vector<std::string>& nodes = {});

}  // namespace glassformer
