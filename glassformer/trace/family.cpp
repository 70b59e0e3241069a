#include "glassformer/trace/family.h"

#include <algorithm>

namespace glassformer {

Family::Family(std::shared_ptr<const Model> owner, int64_t n_batch, Begin begin)
    : model(std::move(owner)),
      batch(n_batch),
      lineages(std::move(begin)),
      weights(*model),
      rows_computed(model->graph().nodes().size(), 0) {
  constexpr int64_t kSmallestBudget = int64_t{64} << 20;
  const auto element = static_cast<int64_t>(c10::elementSize(model->weights().dtype()));
  keep.budget_bytes = std::max(kSmallestBudget, model->weights().count() * element / 4);
}

const Step& Family::step_of(const Node& node, const Lineage& lineage) const {
  return begin().has_fast(node) && !lineage.edits_any(node.skipped) ? node.fast : node.open;
}

bool Family::keeps(const Node& node) const { return node.attended || node.is_input || keep.what == Keep::What::kAll; }

void Family::follow_weights() {
  if (hooks_running > 0 || !weights.update(*model)) return;
  std::vector<bool> reached;
  for (const Node& node : graph().nodes()) reached.push_back(weights.epoch_of(node.id) == weights.epoch());
  lineages.drop_computed(reached);
}

void Family::trim() {
  if (keep.what != Keep::What::kAll) shelf.trim(keep.budget_bytes);
}

}  // namespace glassformer
