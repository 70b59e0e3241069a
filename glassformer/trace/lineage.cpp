#include "glassformer/trace/lineage.h"

#include <algorithm>

namespace glassformer {

// --- One lineage -----------------------------------------------------------------------------------------------------

Lineage::Lineage(Lineage* parent, const Influence& last, uint64_t id) : parent_(parent), last_(last), id_(id) {
  if (is_root()) {
    kinds_ = std::make_shared<const Kinds>();
    return;
  }
  const Edit& edit = *last_.edit;
  size_ = parent->size_ + 1;
  length_class_ = edit.kind == Edit::Kind::kLength ? edit.length_class : parent->length_class_;
  overlaid_until_ = parent->overlaid_until_;
  looks_until_ = parent->looks_until_;
  looks_ahead_ = parent->looks_ahead_;
  if (edit.overlay) overlaid_until_ = std::max(overlaid_until_, edit.overlay->rows().end());
  if (edit.overlay && edit.overlay->sees_later_keys()) {
    looks_until_ = std::max(looks_until_, edit.overlay->n_keys());
    looks_ahead_ = this;
  }
  kinds_ = parent->kinds_;
  const std::pair kind(edit.node, edit.kind);
  const auto place = std::lower_bound(kinds_->begin(), kinds_->end(), kind);
  if (place != kinds_->end() && *place == kind) return;
  Kinds kinds(kinds_->begin(), place);
  kinds.push_back(kind);
  kinds.insert(kinds.end(), place, kinds_->end());
  kinds_ = std::make_shared<const Kinds>(std::move(kinds));
}

std::vector<Influence> Lineage::influences() const {
  std::vector<Influence> influences;
  for (const Lineage* at = this; !at->is_root(); at = at->parent_) influences.push_back(at->last_);
  std::reverse(influences.begin(), influences.end());
  return influences;
}

bool Lineage::edits(NodeId node) const {
  return std::binary_search(kinds_->begin(), kinds_->end(), std::pair(node, Edit::Kind::kOverlay));
}

bool Lineage::edits_any(const std::vector<NodeId>& nodes) const {
  return std::any_of(nodes.begin(), nodes.end(), [this](NodeId node) { return edits(node); });
}

// Rows of this lineage come after the beginning of each overlay on the node, so those that end before another begins
// reach none of them.
const Influence* Lineage::overlay_on(NodeId node) const {
  const Influence* found = nullptr;
  int64_t begin = -1;
  for (const Lineage* at = this; !at->is_root() && at->overlaid_until_ > begin; at = at->parent_) {
    const Edit& edit = *at->last_.edit;
    if (edit.node != node || edit.kind != Edit::Kind::kOverlay) continue;
    if (found == nullptr) begin = at->last_.from;
    if (edit.overlay->rows().end() <= begin) continue;
    if (found == nullptr || found->edit->place < edit.place) found = &at->last_;
  }
  return found;
}

RowSet Lineage::overlaid(NodeId node, Interval rows) const {
  RowSet found;
  for (const Lineage* at = this; !at->is_root() && at->overlaid_until_ > rows.begin; at = at->parent_)
    if (at->last_.edit->node == node && at->last_.edit->overlay)
      found = found.united(at->last_.edit->overlay->rows().within(rows.begin, rows.end));
  return found;
}

int64_t Lineage::later_keys(const Graph& graph, NodeId mixed) const {
  int64_t keys = 0;
  for (const Lineage* at = looks_ahead_; at != nullptr; at = at->parent_->looks_ahead_) {
    const Edit& edit = *at->last_.edit;
    if (graph.mixed_by(edit.node) == mixed) keys = std::max(keys, edit.overlay->n_keys());
  }
  return keys;
}

Cell& Lineage::cell(const Node& node) {
  const auto known = cells_.find(node.id);
  if (known != cells_.end()) return known->second;
  for (Lineage* at = this; at != nullptr && !at->holds_cells_; at = at->parent_) at->holds_cells_ = true;
  return cells_.try_emplace(node.id, *this, node).first->second;
}

const Cell* Lineage::known_cell(NodeId node) const {
  const auto known = cells_.find(node);
  return known == cells_.end() ? nullptr : &known->second;
}

// --- Which there are -------------------------------------------------------------------------------------------------

Lineages::Lineages(Begin begin)
    : begin_(std::move(begin)), graph_(begin_.graph()), root_(std::make_unique<Lineage>(nullptr, Influence{}, 0)) {}

Lineages::~Lineages() { end(std::move(root_), false); }

// One after the other: a chain can be as long as its trace.
void Lineages::end(std::unique_ptr<Lineage> lineage, bool with_edits) {
  std::vector<std::unique_ptr<Lineage>> ending;
  ending.push_back(std::move(lineage));
  while (!ending.empty()) {
    const std::unique_ptr<Lineage> last = std::move(ending.back());
    ending.pop_back();
    for (auto& [order, child] : last->children_) ending.push_back(std::move(child));
    if (with_edits) last->last_.edit->lineages.erase(last.get());
  }
}

Lineage& Lineages::child(Lineage& parent, const Influence& influence) {
  std::unique_ptr<Lineage>& child = parent.children_[influence.order()];
  if (!child) {
    child = std::make_unique<Lineage>(&parent, influence, next_id_++);
    influence.edit->lineages.insert(child.get());
  }
  return *child;
}

Lineage& Lineages::intern(std::vector<Influence> influences) {
  std::sort(influences.begin(), influences.end(),
            [](const Influence& a, const Influence& b) { return a.order() < b.order(); });
  Lineage* lineage = root_.get();
  for (const Influence& influence : influences) lineage = &child(*lineage, influence);
  return *lineage;
}

Lineage& Lineages::with(Lineage& lineage, const Influence& influence) {
  std::vector<Influence> later;
  Lineage* at = &lineage;
  for (; !at->is_root() && at->last_.order() > influence.order(); at = at->parent_) later.push_back(at->last_);
  at = &child(*at, influence);
  for (auto next = later.rbegin(); next != later.rend(); ++next) at = &child(*at, *next);
  return *at;
}

Lineage& Lineages::without(Lineage& lineage, const Influence& influence) {
  std::vector<Influence> later;
  Lineage* at = &lineage;
  for (; at->last_.edit != influence.edit; at = at->parent_) later.push_back(at->last_);
  at = at->parent_;
  for (auto next = later.rbegin(); next != later.rend(); ++next) at = &child(*at, *next);
  return *at;
}

void Lineages::forget(Edit& edit) {
  while (!edit.lineages.empty()) {
    Lineage& lineage = **edit.lineages.begin();
    const auto own = lineage.parent_->children_.find(lineage.last_.order());
    std::unique_ptr<Lineage> ended = std::move(own->second);
    lineage.parent_->children_.erase(own);
    end(std::move(ended), true);
  }
  if (edit.hook)
    for (const std::shared_ptr<Edit>& overlay : edit.hook->made) forget(*overlay);
}

void Lineages::empty(Edit& edit) {
  std::vector<Lineage*> left(edit.lineages.begin(), edit.lineages.end());
  while (!left.empty()) {
    Lineage& lineage = *left.back();
    left.pop_back();
    if (!lineage.holds_cells_) continue;
    lineage.holds_cells_ = false;
    lineage.cells_.clear();
    for (const auto& [order, child] : lineage.children_) left.push_back(child.get());
  }
}

void Lineages::drop_computed(const std::vector<bool>& nodes) {
  std::vector<Lineage*> left = {root_.get()};
  while (!left.empty()) {
    Lineage& lineage = *left.back();
    left.pop_back();
    for (const auto& [order, child] : lineage.children_) left.push_back(child.get());
    for (auto& [node, cell] : lineage.cells_)
      if (nodes[static_cast<size_t>(node)] && node != begin_.source()) cell.cut_to(begin_.given(node));
  }
}

// --- Which one a value has -------------------------------------------------------------------------------------------

bool Lineages::concerns(NodeId edited, Edit::Kind kind, NodeId node) const {
  const bool own = edited == node && kind != Edit::Kind::kLength;  // Positions stay; what is made of them changes.
  return own || begin_.reaches(edited, node);
}

Lineage& Lineages::restricted(Lineage& lineage, NodeId node, EditPlace end) {
  const bool all_own = end == kAfterAll;
  bool all = true, none = true;
  for (const auto& [edited, kind] : *lineage.kinds_) {
    const bool concerned = concerns(edited, kind, node);
    (concerned ? none : all) = false;
    if (edited == node && kind == Edit::Kind::kOverlay && !all_own) all = none = false;
  }
  if (all) return lineage;
  if (none) return *root_;
  const Lineage::Restriction key(node, end);
  std::vector<Lineage*> path;  // Down from the nearest one for which it is known.
  Lineage* at = &lineage;
  Lineage* result = root_.get();
  for (; !at->is_root(); at = at->parent_) {
    if (const auto known = at->restricted_.find(key); known != at->restricted_.end()) {
      result = known->second;
      break;
    }
    path.push_back(at);
  }
  constexpr size_t kEvery = 32;  // Enough to find the next one fast, in little memory.
  for (size_t i = path.size(); i-- > 0;) {
    const Influence& influence = path[i]->last_;
    const bool too_late = influence.edit->node == node && influence.edit->overlay && influence.edit->place >= end;
    if (concerns(*influence.edit, node) && !too_late) result = &child(*result, influence);
    if (i % kEvery == 0) path[i]->restricted_[key] = result;
  }
  return *result;
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
  for (const Lineage* other = lineage.looks_ahead_; other != nullptr; other = other->parent_->looks_ahead_) {
    const Edit& edit = *other->last_.edit;
    if (&edit == influence.edit) continue;
    if (influence.from >= edit.overlay->n_keys()) continue;  // It gives no weight to keys as late as these.
    const NodeId mixed = graph_->mixed_by(edit.node);
    const bool below = influence.edit->node < edit.node && begin_.reaches(influence.edit->node, mixed);
    const bool same_weighting = graph_->mixed_by(influence.edit->node) == mixed;
    if (below && !same_weighting && (node == mixed || begin_.reaches(mixed, node))) return first;
  }
  return std::max(influence.from, first);
}

int64_t Lineages::causal_from(const Lineage& lineage, NodeId node) const {
  const int64_t given = begin_.given(node);  // Of the node at which a trace begins, all: nothing reaches it.
  return given == Begin::kNever ? lineage.looks_until_ : std::max(lineage.looks_until_, given);
}

// Where the rows of `node` lie if some layer looks at later keys: an influence can reach rows before its beginning.
const std::vector<Lineage::Span>& Lineages::early_spans(Lineage& lineage, NodeId node) {
  const auto known = lineage.early_.find(node);
  if (known != lineage.early_.end()) return known->second;
  std::vector<std::pair<int64_t, Influence>> effects;
  std::vector<int64_t> begins = {0};
  for (const Influence& influence : lineage.influences()) {
    effects.emplace_back(effect_on(influence, lineage, node), influence);
    begins.push_back(effects.back().first);
  }
  std::sort(begins.begin(), begins.end());
  begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
  std::vector<Lineage::Span> spans;
  for (const int64_t begin : begins) {
    std::vector<Influence> active;
    for (const auto& [from, influence] : effects)
      if (from <= begin) active.push_back(influence);
    spans.push_back({begin, &intern(std::move(active))});
  }
  return lineage.early_.emplace(node, std::move(spans)).first->second;
}

// The rows around `row` that depend on the same of the influences, which all concern `node`.
Lineage::Span Lineages::span(Lineage& lineage, NodeId node, int64_t row) {
  Lineage* at = &lineage;
  const int64_t causal = causal_from(lineage, node);
  while (!at->is_root() && at->last_.from > row && at->last_.from >= causal) at = at->parent_;
  if (row >= causal) return {std::max(at->is_root() ? 0 : at->last_.from, causal), at};
  const std::vector<Lineage::Span>& early = early_spans(*at, node);
  const auto after = std::upper_bound(early.begin(), early.end(), row,
                                      [](int64_t r, const Lineage::Span& each) { return r < each.begin; });
  return *std::prev(after);
}

Lineage& Lineages::at(Lineage& lineage, NodeId node, int64_t row) {
  return *span(restricted(lineage, node), node, row).lineage;
}

Lineage* Lineages::alike_until(Lineage& lineage, NodeId node, int64_t row) {
  Lineage& under = restricted(lineage, node);
  if (row < causal_from(under, node)) return nullptr;
  Lineage& last = *span(under, node, row).lineage;
  return last.looks_until_ == under.looks_until_ ? &last : nullptr;
}

// From the last row to the first.
void Lineages::add_parts(Lineage& given, const Node& node, Interval rows, std::vector<Part>& backward) {
  Lineage* under = &restricted(given, node.id);
  while (rows.end > rows.begin) {
    const Lineage::Span found = span(*under, node.id, rows.end - 1);
    Lineage& lineage = *found.lineage;
    Interval part{std::max(found.begin, rows.begin), rows.end};
    const Cell* cell = lineage.known_cell(node.id);
    const bool is_causal = rows.end > causal_from(*under, node.id) && lineage.looks_until_ == under->looks_until_;
    // A cell that grew out of the one before it holds its rows too.
    if (is_causal && cell != nullptr)
      part.begin = std::max(rows.begin, std::min(part.begin, cell->begin_of(rows.end - 1)));
    rows.end = part.begin;
    const bool is_there = cell != nullptr && cell->begin_of(part.end - 1) <= part.begin;
    if (is_causal) under = &lineage;
    if (is_there || !lineage.edits(node.id)) {
      backward.push_back({part, &lineage});
      continue;
    }
    // Rows that no overlay touches are those of the lineage without them.
    const RowSet touched = lineage.overlaid(node.id, part);
    const RowSet untouched = RowSet(part.begin, part.end).without(touched);
    std::vector<Interval> pieces = touched.intervals();
    pieces.insert(pieces.end(), untouched.intervals().begin(), untouched.intervals().end());
    std::sort(pieces.begin(), pieces.end(), [](const Interval& a, const Interval& b) { return a.begin > b.begin; });
    for (const Interval& piece : pieces)
      if (touched.contains(piece.begin)) {
        backward.push_back({piece, &lineage});
      } else {
        add_parts(restricted(lineage, node.id, kBeforeAll), node, piece, backward);
      }
  }
}

std::vector<Part> Lineages::parts(Lineage& lineage, const Node& node, const RowSet& rows) {
  std::vector<Part> parts;
  for (auto interval = rows.intervals().rbegin(); interval != rows.intervals().rend(); ++interval)
    add_parts(lineage, node, *interval, parts);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace glassformer
