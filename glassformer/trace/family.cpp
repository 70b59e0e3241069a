#include "glassformer/trace/family.h"

#include <ATen/ops/cat.h>

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
  lineages.each_cell([&](NodeId node, Cell& cell) {
    if (weights.epoch_of(node) != weights.epoch() || node == begin().source()) return;
    if (!cell.keep) held_bytes -= cell.bytes();
    const RowSet given = cell.valid().within(0, begin().given(node));
    std::vector<at::Tensor> past;
    for (const Interval& rows : given.intervals()) cell.collect(rows, past);
    cell.clear();
    if (!given.empty()) cell.insert(given, past.size() == 1 ? past.front() : at::cat(past, 1), true);
  });
}

void Family::trim() {
  if (keep.what == Keep::What::kAll || held_bytes <= keep.budget_bytes) return;
  std::vector<Cell*> loose;
  lineages.each_cell([&](NodeId, Cell& cell) {
    if (!cell.keep && !cell.valid().empty()) loose.push_back(&cell);
  });
  std::sort(loose.begin(), loose.end(), [](const Cell* a, const Cell* b) { return a->last_use < b->last_use; });
  held_bytes = 0;
  for (const Cell* cell : loose) held_bytes += cell->bytes();
  for (Cell* cell : loose) {
    if (held_bytes <= keep.budget_bytes) return;
    held_bytes -= cell->bytes();
    cell->clear();
  }
}

}  // namespace glassformer
