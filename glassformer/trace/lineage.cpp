#include "glassformer/trace/lineage.h"

#include <algorithm>

namespace glassformer {

const Influence* Lineage::overlay_on(NodeId node) const {
  const Influence* last = nullptr;
  for (const Influence& influence : influences_)
    if (influence.edit->node == node && influence.edit->kind == Edit::Kind::kOverlay) last = &influence;
  return last;
}

bool Lineage::edits_any(const std::vector<NodeId>& nodes) const {
  return std::any_of(nodes.begin(), nodes.end(), [this](NodeId node) { return overlay_on(node) != nullptr; });
}

int64_t Lineage::later_keys(const Graph& graph, NodeId mixed) const {
  int64_t keys = 0;
  for (const Influence& influence : influences_) {
    const Edit& edit = *influence.edit;
    if (edit.overlay && edit.overlay->sees_later_keys() && graph.mixed_by(edit.node) == mixed)
      keys = std::max(keys, edit.overlay->n_keys());
  }
  return keys;
}

int64_t Lineage::length_class() const {
  for (const Influence& influence : influences_)
    if (influence.edit->kind == Edit::Kind::kLength) return influence.edit->length_class;
  return 0;
}

LineageKey key_of(const std::vector<Influence>& influences) {
  LineageKey key;
  key.reserve(influences.size());
  for (const Influence& influence : influences) key.emplace_back(influence.edit->id, influence.from);
  return key;
}

Lineages::Lineages(Begin begin) : begin_(std::move(begin)), graph_(begin_.graph()) { root_ = &intern({}); }

Lineage& Lineages::intern(std::vector<Influence> influences) {
  std::unique_ptr<Lineage>& lineage = lineages_[key_of(influences)];
  if (!lineage) {
    lineage = std::make_unique<Lineage>(std::move(influences));
    for (const Influence& influence : lineage->influences()) influence.edit->lineages.push_back(lineage.get());
  }
  return *lineage;
}

bool Lineages::concerns(const Edit& edit, NodeId node) const {
  const bool own =
      edit.node == node && edit.kind != Edit::Kind::kLength;  // Positions stay; what is made of them changes.
  return own || begin_.reaches(edit.node, node);
}

// Whether queries before the influence see it in a layer on the way to `node`, because the mask that was given lets
// them. Within a layer whose scores or pattern it edits it stays with its query.
bool Lineages::is_seen_ahead(const Influence& influence, NodeId node) const {
  if (influence.from >= keys_ahead_) return false;
  const NodeId from = influence.edit->node;
  const auto passes = [&](NodeId by) { return begin_.reaches(from, by) && (by == node || begin_.reaches(by, node)); };
  for (const Node& weighting : graph_->nodes()) {
    if (!weighting.is_weighting() || graph_->mixed_by(from) == weighting.mixed_by) continue;
    if (passes(weighting.id) || passes(weighting.mixed_by)) return true;
  }
  return false;
}

// The first row of `node` that the influence changes: where it starts, or the first row of all where a layer between
// them looks at later keys; but none of those that are given.
int64_t Lineages::effect_on(const Influence& influence, const Lineage& lineage, NodeId node) const {
  const int64_t first = influence.edit->node == node ? 0 : begin_.given(node);
  if (is_seen_ahead(influence, node)) return first;
  for (const Influence& other : lineage.influences()) {
    const Edit& edit = *other.edit;
    if (&edit == influence.edit || !edit.overlay || !edit.overlay->sees_later_keys()) continue;
    if (influence.from >= edit.overlay->n_keys()) continue;  // It gives no weight to keys as late as these.
    const NodeId mixed = graph_->mixed_by(edit.node);
    const bool below = influence.edit->node < edit.node && begin_.reaches(influence.edit->node, mixed);
    const bool same_weighting = graph_->mixed_by(influence.edit->node) == mixed;
    if (below && !same_weighting && (node == mixed || begin_.reaches(mixed, node))) return first;
  }
  return std::max(influence.from, first);
}

const std::vector<Span>& Lineages::spans(Lineage& lineage, NodeId node) {
  const auto known = lineage.spans_.find(node);
  if (known != lineage.spans_.end()) return known->second;
  std::vector<std::pair<int64_t, Influence>> effects;
  std::vector<int64_t> begins = {0};
  for (const Influence& influence : lineage.influences()) {
    if (!concerns(*influence.edit, node)) continue;
    effects.emplace_back(effect_on(influence, lineage, node), influence);
    begins.push_back(effects.back().first);
  }
  std::sort(begins.begin(), begins.end());
  begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
  std::vector<Span> spans;
  for (size_t i = 0; i < begins.size(); ++i) {
    std::vector<Influence> active;
    for (const auto& [from, influence] : effects)
      if (from <= begins[i]) active.push_back(influence);
    spans.push_back({begins[i], i + 1 < begins.size() ? begins[i + 1] : INT64_MAX, &intern(std::move(active))});
  }
  return lineage.spans_.emplace(node, std::move(spans)).first->second;
}

Lineage& Lineages::before(Lineage& lineage, NodeId node, int64_t end) {
  Lineage* last = root_;
  for (const Span& span : spans(lineage, node))
    if (span.begin < end) last = span.lineage;
  return *last;
}

void Lineages::forget(Edit& edit) {
  const std::vector<Lineage*> ended = std::move(edit.lineages);
  edit.lineages.clear();
  for (Lineage* lineage : ended) {
    const LineageKey key = lineage->key();
    for (const Influence& influence : lineage->influences()) std::erase(influence.edit->lineages, lineage);
    lineages_.erase(key);
  }
  if (edit.hook)
    for (const std::shared_ptr<Edit>& overlay : edit.hook->made) forget(*overlay);
}

}  // namespace glassformer
