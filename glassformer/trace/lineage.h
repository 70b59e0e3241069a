#pragma once
// Lineages: the sets of edits that a value depends on. Traces of a family that agree on the edits upstream of a node
// share its cells, because they share its lineage.

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "glassformer/graph/graph.h"
#include "glassformer/trace/begin.h"
#include "glassformer/trace/cell.h"
#include "glassformer/trace/edit.h"

namespace glassformer {

/// An edit, and the first position at which it changes anything (a value that was there already changes nothing).
struct Influence {
  Edit* edit = nullptr;
  int64_t from = 0;

  /// The order in which a lineage holds them: by first position, then by edit.
  std::pair<int64_t, uint64_t> order() const { return {from, edit->id}; }
};

/// Influences in order, each lineage one more than its parent. So lineages that begin alike share their beginning, and
/// where a layer looks at no later keys, those before a position are a lineage further up.
class Lineage {
 public:
  Lineage(Lineage* parent, const Influence& last, uint64_t id);

  /// Tells it from all other lineages of its family, also from those that have ended.
  uint64_t id() const { return id_; }
  /// How many influences it has.
  int64_t size() const { return size_; }
  bool is_root() const { return parent_ == nullptr; }
  /// All influences, in order.
  std::vector<Influence> influences() const;
  /// Whether it has an overlay on `node` itself.
  bool edits(NodeId node) const;
  bool edits_any(const std::vector<NodeId>& nodes) const;
  /// The last overlay on `node` itself, as they count, of those that reach rows which belong to this lineage; or null.
  const Influence* overlay_on(NodeId node) const;
  /// Where overlays on `node` itself touch [begin, end).
  RowSet overlaid(NodeId node, Interval rows) const;
  /// How many keys the attention that makes `mixed` sees at least: the largest extent of an edited pattern or scores of
  /// its layer that give weight to keys after their query; 0 in a causal layer.
  int64_t later_keys(const Graph& graph, NodeId mixed) const;
  int64_t length_class() const { return length_class_; }

  Cell& cell(const Node& node);
  /// The node's cell if there is one, or null.
  const Cell* known_cell(NodeId node) const;
  void drop(NodeId node) { cells_.erase(node); }

 private:
  friend class Lineages;
  using Kinds = std::vector<std::pair<NodeId, Edit::Kind>>;
  struct Span {
    int64_t begin = 0;  // It ends where the next one begins.
    Lineage* lineage = nullptr;
  };
  using Restriction = std::pair<NodeId, EditPlace>;

  Lineage* parent_;  // Null: the root, which has no influences.
  Influence last_;
  uint64_t id_;
  int64_t size_ = 0;
  int64_t length_class_ = 0;
  int64_t overlaid_until_ = 0;            // No overlay reaches further.
  int64_t looks_until_ = 0;               // No overlay, and no mask, gives weight to later keys from there on.
  const Lineage* looks_ahead_ = nullptr;  // The nearest one, itself included, whose last influence does.
  std::shared_ptr<const Kinds> kinds_;    // What is edited, sorted; shared along the chain.
  std::map<std::pair<int64_t, uint64_t>, std::unique_ptr<Lineage>> children_;
  std::unordered_map<NodeId, Cell> cells_;
  bool holds_cells_ = false;                    // It or one further down has had cells since they were emptied.
  std::map<Restriction, Lineage*> restricted_;  // See `Lineages::restricted`.
  std::map<NodeId, std::vector<Span>> early_;   // See `Lineages::early_spans`.
};

/// Rows [begin, end) of a node lie in the cell of `lineage`.
struct Part {
  Interval rows;
  Lineage* lineage = nullptr;
};

/// All lineages of a family, each kept once.
class Lineages {
 public:
  explicit Lineages(Begin begin);
  ~Lineages();
  Lineages(const Lineages&) = delete;
  Lineages& operator=(const Lineages&) = delete;

  const Begin& begin() const { return begin_; }
  /// In every layer queries see the first `keys` keys, also those after them; before any value is there.
  void look_ahead(int64_t keys) { root_->looks_until_ = keys_ahead_ = keys; }
  /// How many keys a query may see at least; 0 where none sees keys after it.
  int64_t keys_ahead() const { return keys_ahead_; }

  Lineage& root() { return *root_; }
  /// The lineage with these influences, in any order.
  Lineage& intern(std::vector<Influence> influences);
  Lineage& with(Lineage& lineage, const Influence& influence);
  Lineage& without(Lineage& lineage, const Influence& influence);
  /// Those influences that can change `node`. Of overlays on the node itself only those that count before `end`.
  Lineage& restricted(Lineage& lineage, NodeId node, EditPlace end = kAfterAll);
  /// Where the rows of `node` lie for values that depend on `lineage`, in order.
  std::vector<Part> parts(Lineage& lineage, const Node& node, const RowSet& rows);
  /// What row `row` of `node` depends on.
  Lineage& at(Lineage& lineage, NodeId node, int64_t row);
  /// The lineage of row `row` of `node`, if all earlier rows of `lineage` are that one's too; or null.
  Lineage* alike_until(Lineage& lineage, NodeId node, int64_t row);
  /// Whether `edit` can change `node`.
  bool concerns(const Edit& edit, NodeId node) const { return concerns(edit.node, edit.kind, node); }
  /// Ends every lineage that holds `edit`, or what it made as a hook.
  void forget(Edit& edit);
  /// Empties every lineage that holds `edit`, which may come back.
  void empty(Edit& edit);
  /// Drops all cells of these nodes but what is given of them.
  void drop_computed(const std::vector<bool>& nodes);

 private:
  bool is_seen_ahead(const Influence& influence, NodeId node) const;
  /// From this row on an influence changes no row before its beginning.
  int64_t causal_from(const Lineage& lineage, NodeId node) const;
  bool concerns(NodeId edited, Edit::Kind kind, NodeId node) const;
  Lineage& child(Lineage& parent, const Influence& influence);
  Lineage::Span span(Lineage& restricted, NodeId node, int64_t row);
  const std::vector<Lineage::Span>& early_spans(Lineage& restricted, NodeId node);
  int64_t effect_on(const Influence& influence, const Lineage& lineage, NodeId node) const;
  void add_parts(Lineage& lineage, const Node& node, Interval rows, std::vector<Part>& backward);
  static void end(std::unique_ptr<Lineage> lineage, bool with_edits);

  Begin begin_;
  int64_t keys_ahead_ = 0;
  std::shared_ptr<const Graph> graph_;
  uint64_t next_id_ = 1;
  std::unique_ptr<Lineage> root_;
};

}  // namespace glassformer
