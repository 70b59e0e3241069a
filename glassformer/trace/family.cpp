#include "glassformer/trace/family.h"

#include <algorithm>

namespace glassformer {

Family::Family(std::shared_ptr<const Model> owner, int64_t n_batch)
    : model(std::move(owner)),
      batch(n_batch),
      lineages(std::shared_ptr<const Graph>(model, &model->graph())),
      rows_computed(model->graph().nodes().size(), 0) {
  constexpr int64_t kSmallestBudget = int64_t{64} << 20;
  const auto element = static_cast<int64_t>(c10::elementSize(model->weights().dtype()));
  keep.budget_bytes = std::max(kSmallestBudget, model->weights().count() * element / 4);
}

bool Family::keeps(const Node& node) const { return node.attended || node.is_input || keep.what == Keep::What::kAll; }

void Family::trim() {
  if (keep.what != Keep::What::kAll) shelf.trim(keep.budget_bytes);
}

}  // namespace glassformer
