#pragma once
// Internal to trace/: what a trace and its forks share.

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "glassformer/graph/model.h"
#include "glassformer/trace/lineage.h"
#include "glassformer/trace/weight_watch.h"

namespace glassformer {

/// Which values stay after they were used. Never changes a result.
struct Keep {
  enum class What { kBudget, kAll, kNeeded } what = What::kBudget;
  int64_t budget_bytes = 0;  // 0: the larger of 64 MB and a quarter of the weights.
};

struct Family {
  /// Who is inside: see `InUse`.
  struct Use {
    std::mutex mutex;
    std::thread::id thread;
    int depth = 0;
    std::vector<std::vector<Entry>> ended;  // Of traces that ended while somebody was inside.
  };

  Family(std::shared_ptr<const Model> owner, int64_t n_batch, Begin begin);

  std::shared_ptr<const Model> model;
  int64_t batch = 1;
  Shelf shelf;  // Outlives the lineages, whose cells stand on it.
  Lineages lineages;
  Keep keep;
  bool mask_given = false, positions_given = false;
  std::optional<QueryMask> query_mask;                  // Where the mask that was given has one for each query.
  std::function<void()> poll;                           // Called between steps; may throw to stop.
  std::map<int64_t, std::weak_ptr<Edit>> length_edits;  // By length class.
  WeightWatch weights;
  int hooks_running = 0;  // Of its traces.

  Use use;
  uint64_t next_edit = 1;
  bool computing = false;              // While steps run.
  std::vector<int64_t> rows_computed;  // For each node.

  const Graph& graph() const { return model->graph(); }
  const Begin& begin() const { return lineages.begin(); }
  /// The step that computes `node` where the edits of `lineage` are.
  const Step& step_of(const Node& node, const Lineage& lineage) const;
  /// Drops the values that weights reach which were changed since they were computed. Does nothing while a hook runs.
  void follow_weights();
  /// Releases what may be, longest unused first, until the rest fits the budget.
  void trim();
  /// Whether cells of this node stay for good.
  bool keeps(const Node& node) const;
  /// A trace has ended that had these edits: what nobody else depends on goes, at once or when the family is free.
  void end(std::vector<Entry> entries);

 private:
  friend class InUse;
  void drop(const std::vector<Entry>& entries);
};

/// A thread inside a family; `OrderError` where another one is. Traces may end on any thread at any time. Values are
/// made as ordinary tensors, without a graph where the thread is in inference mode: what is made in that mode counts no
/// changes, and stays what it is outside of it.
class InUse {
 public:
  explicit InUse(Family& family);
  ~InUse();
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  Family& family_;
  std::optional<c10::InferenceMode> no_inference_;
  std::optional<at::NoGradGuard> no_grad_;
};

}  // namespace glassformer
