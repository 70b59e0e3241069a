#include "glassformer/trace/family.h"

#include <algorithm>

#include "glassformer/base/errors.h"

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

bool Family::keeps(const Node& node) const {
  return node.attended || node.is_input || node.choices > 0 || keep.what == Keep::What::kAll;
}

void Family::follow_weights() {
  if (hooks_running > 0 || !weights.update(*model)) return;
  std::vector<bool> reached;
  for (const Node& node : graph().nodes()) reached.push_back(weights.epoch_of(node.id) == weights.epoch());
  lineages.drop_computed(reached);
}

void Family::trim() {
  if (keep.what != Keep::What::kAll) shelf.trim(keep.budget_bytes);
}

void Family::drop(const std::vector<Entry>& entries) {
  for (const Entry& entry : entries)
    for (const HookResult& result : entry.results)
      if (result.overlay && result.use.use_count() == 1) lineages.empty(*result.overlay);
  for (const Entry& entry : entries)
    if (entry.edit.use_count() == 1) lineages.forget(*entry.edit);
}

// Edits end after the lock: their hooks may wait for an interpreter that waits for us.
void Family::end(std::vector<Entry> entries) {
  const std::scoped_lock lock(use.mutex);
  if (use.depth == 0) {
    drop(entries);
  } else {
    use.ended.push_back(std::move(entries));
  }
}

InUse::InUse(Family& family) : family_(family) {
  const std::scoped_lock lock(family.use.mutex);
  if (family.use.depth > 0 && family.use.thread != std::this_thread::get_id())
    throw OrderError(
        "a trace and its forks belong to one thread at a time, and another one is inside: give each thread a trace of "
        "its own (of the same model)");
  family.use.thread = std::this_thread::get_id();
  ++family.use.depth;
  if (!c10::InferenceMode::is_enabled()) return;
  no_inference_.emplace(false);
  no_grad_.emplace();
}

InUse::~InUse() {
  for (;;) {
    std::vector<std::vector<Entry>> ended;
    {
      const std::scoped_lock lock(family_.use.mutex);
      if (family_.use.depth > 1 || family_.use.ended.empty()) {
        --family_.use.depth;
        return;
      }
      ended.swap(family_.use.ended);
    }
    for (const std::vector<Entry>& entries : ended) family_.drop(entries);
  }
}

}  // namespace glassformer
