#pragma once
// Lineages: the sets of edits that a value depends on. Traces of a family that agree on the edits upstream of a node
// share its cells, because they share its lineage.

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "glassformer/graph/graph.h"
#include "glassformer/trace/cell.h"
#include "glassformer/trace/edit.h"

namespace glassformer {

/// An edit, and the first position at which it changes anything (a value that was there already changes nothing).
struct Influence {
  Edit* edit = nullptr;
  int64_t from = 0;
  bool operator==(const Influence&) const = default;
};

LineageKey key_of(const std::vector<Influence>& influences);

/// The cells of rows [begin, end) belong to `lineage`.
struct Span {
  int64_t begin = 0, end = INT64_MAX;
  Lineage* lineage = nullptr;
};

class Lineage {
 public:
  explicit Lineage(std::vector<Influence> influences) : influences_(std::move(influences)) {}

  const std::vector<Influence>& influences() const { return influences_; }
  /// What tells it from the other lineages of its family, also of those that have ended.
  LineageKey key() const { return key_of(influences_); }
  /// The last overlay on `node` itself, or null.
  const Influence* overlay_on(NodeId node) const;
  bool edits_any(const std::vector<NodeId>& nodes) const;
  /// How many keys the attention that makes `mixed` sees at least: the largest extent of an edited pattern or scores of
  /// its layer that give weight to keys after their query; 0 in a causal layer.
  int64_t later_keys(const Graph& graph, NodeId mixed) const;
  int64_t length_class() const;

  Cell& cell(const Node& node) { return cells_.try_emplace(node.id, *this, node).first->second; }
  void drop(NodeId node) { cells_.erase(node); }

 private:
  friend class Lineages;
  std::vector<Influence> influences_;  // In the order in which they count: by node, then as made.
  std::unordered_map<NodeId, Cell> cells_;
  std::unordered_map<NodeId, std::vector<Span>> spans_;
};

/// All lineages of a family, each kept once.
class Lineages {
 public:
  explicit Lineages(std::shared_ptr<const Graph> graph);

  Lineage& root() { return *root_; }
  /// The lineage with these influences (in the order in which they count).
  Lineage& intern(std::vector<Influence> influences);
  /// Where the rows of `node` lie for values that depend on `lineage`.
  const std::vector<Span>& spans(Lineage& lineage, NodeId node);
  /// What the rows of `node` before row `end` depend on.
  Lineage& before(Lineage& lineage, NodeId node, int64_t end);
  /// Whether `edit` can change `node`.
  bool concerns(const Edit& edit, NodeId node) const;
  /// Ends every lineage that holds `edit`, or what it made as a hook.
  void forget(Edit& edit);

 private:
  int64_t effect_on(const Influence& influence, const Lineage& lineage, NodeId node) const;

  std::shared_ptr<const Graph> graph_;
  std::map<LineageKey, std::unique_ptr<Lineage>> lineages_;
  Lineage* root_ = nullptr;
};

}  // namespace glassformer
