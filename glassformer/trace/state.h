#pragma once
// Internal to trace/: a trace from the inside, its edits and what they change.

#include <optional>
#include <set>
#include <span>
#include <vector>

#include "glassformer/trace/evaluator.h"
#include "glassformer/trace/live.h"
#include "glassformer/trace/tape.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

/// The tokens of a trace and of those forks that only follow it. A trace that stands at the end may append in place;
/// one that another has overtaken starts a stem of its own.
struct Stem {
  int64_t length = 0;
};

struct TraceState {
  std::shared_ptr<Family> family;
  std::shared_ptr<Stem> stem;
  int64_t length = 0;
  std::vector<int64_t> segments;          // Where the prompt and each append begin.
  std::vector<Entry> entries;             // In the order in which they count: by node, then as made.
  NodeId in_hook = -1;                    // While a hook runs: its node,
  std::set<NodeId>* looked_at = nullptr;  // and where the nodes that it reads are noted.
  mutable Lineage* all_known = nullptr;   // All that is known to change something; null: to be put together again.
  int64_t weight_epoch = 0;               // Of the family's weights, when what `entries` change was found out.
  bool tracked = false;                   // Every value carries a graph while gradients are on.
  at::Tensor given_with_graph;            // What was given in the place of tokens, if it carries a graph.
  Tape tape;
  LiveValues live;

  ~TraceState();
  const Graph& graph() const { return family->graph(); }
  const Begin& begin() const { return family->begin(); }

  // --- Beginning (start.cpp)
  /// A trace of a new family on tokens, or on the value of `node`.
  static std::unique_ptr<TraceState> started(std::shared_ptr<const Model> model, const at::Tensor& given,
                                             const TraceOptions& options, std::optional<NodeId> node = {});
  /// The mask of a model that sees later keys too: `batch query_pos key_pos`.
  at::Tensor mask_for_all(const at::Tensor& mask) const;
  void give_mask(const at::Tensor& mask);
  void give_positions(const at::Tensor& positions);
  void give_past(const Past& past);
  /// What the user gives for the node at which the trace begins, checked: `batch pos …`.
  at::Tensor as_given(const at::Tensor& given) const;
  at::Tensor as_tokens(const at::Tensor& given) const;
  /// What was given for the node at which the trace begins, without edits; on its graph, if it has one.
  at::Tensor given_value() const;
  at::Tensor as_value(const at::Tensor& given) const;

  // --- Giving (state.cpp)
  void append(const at::Tensor& given);
  void truncate(int64_t to_length);
  void cut_edits(int64_t to_length);
  void give(NodeId node, int64_t begin, const at::Tensor& value);
  /// Of what was given for a node, before any edit.
  Lineage& given_lineage(NodeId node) const;
  void update_length_class();

  // --- Edits (state.cpp)
  /// Collects what users changed; `OrderError` while a hook runs.
  void begin_editing();
  void add(std::shared_ptr<Edit> edit) { insert(std::move(edit), {}); }
  /// Adds an edit that a user made in the value `held`.
  void insert(std::shared_ptr<Edit> edit, const at::Tensor& held);
  size_t n_edits(NodeId node) const;
  void add_hook(NodeId node, Hook hook);
  void add_gradient_function(NodeId node, GradientFunction function);
  void drop(NodeId node);
  /// What edits after `node` change must be found out again, where an edit of it from `first_row` on may matter.
  void forget_effects(NodeId node, int64_t first_row = 0);
  void forget_effect(Entry& entry, int64_t first_row);
  /// What changed weights reach must be found out again. Everything that computes begins with this.
  void follow_weights();
  /// Whether a query may see keys after it, now or once all hooks are called.
  bool may_look_ahead() const;
  void add_result(Entry& entry, HookResult result);
  /// Drops what a hook made of segments that go on after `from`.
  void clear_results(Entry& entry, int64_t from = 0);
  at::ScalarType dtype_of(const Node& node) const;
  std::shared_ptr<Edit> make_overlay(const Node& node, const at::Tensor& value, const Region& region,
                                     int64_t length) const;

  // --- Which edits reach a node (resolve.cpp)
  /// Those edits that are known to change `node`, up to `before`.
  Lineage& lineage_of(NodeId node, const Entry* before = nullptr) const;
  /// The ids of the edits before an entry that can change `node`.
  std::vector<uint64_t> edits_before(NodeId node, const RowSet& rows, const Entry* before = nullptr) const;
  bool has_hooks() const;
  /// That an edit changes something from this position on.
  void learn(Edit& edit, int64_t from);
  /// The first edit that may change `node` and whose effect is not known.
  Entry* next_unresolved(NodeId node);
  /// What must be computed to find out the effect of an edit.
  std::vector<Request> needs(const Entry& entry) const;
  /// Finds out the effect of an edit; its needs must be there.
  void settle(Entry& entry);
  void settle_overlay(Entry& entry);
  int64_t effect_of(const Entry& entry, const Request& request) const;
  void settle_hook(Entry& entry);
  /// `OrderError` where a weight was changed since the read began.
  void require_same_weights() const;

  // --- Values in users' hands (live.cpp)
  /// The value of a node for a user who may change it.
  at::Tensor hand_out(NodeId node, const Positions& positions);
  /// Makes edits of what users changed in the values that they hold. `StaleEditError` for a value that was no longer
  /// the node's.
  void collect_live();
  /// Changes of these nodes' values that users hold no longer count: `because` says why.
  void detach_live(NodeId changed, const std::string& because, const at::Tensor& except = {});
  /// An edit that puts `value` at these positions and belongs to `source`, the value that it was made from.
  std::shared_ptr<Edit> make_derived(const Node& node, const at::Tensor& value, const std::vector<int64_t>& rows,
                                     const at::Tensor& source);
  /// After an assignment by index into a live value: `numbers` stand in that region of it. `value` is what was
  /// assigned, if it was a tensor. False where `held` is no live value.
  bool assigned(const at::Tensor& held, const Region& region, const at::Tensor& numbers, const at::Tensor& value);
  /// Whether `value` is what stands in that region of the node anyway.
  bool is_present(const at::Tensor& value, const Node& node, const Region& region);
  void adopt(const LiveValue& value);

  // --- Reading (resolve.cpp)
  Request request(NodeId node, const RowSet& rows) const { return {family.get(), &lineage_of(node), node, rows}; }
  std::vector<int64_t> shape_of(const Node& node, int64_t at_length) const;
  std::vector<int64_t> absolute(const std::vector<int64_t>& positions) const;
  /// Those positions of a node, or all that there are. `UnavailableError` for others.
  std::vector<int64_t> rows_of(NodeId node, const Positions& positions) const;
  /// The rows in the order asked for, in memory that nobody else holds.
  at::Tensor collected(NodeId node, const std::vector<int64_t>& rows) const;
};

/// The rows of a request's node that are computed.
RowSet valid_rows(const Request& request);

/// `OrderError` where a derived edit was made from another value than `present` (the whole node without it).
void require_same_source(TraceState& trace, const Entry& entry, const at::Tensor& present);

/// Marks a trace while one of its hooks runs.
class RunningHook {
 public:
  RunningHook(TraceState& trace, NodeId node, std::set<NodeId>* looked_at = nullptr)
      : trace_(trace), before_(trace.in_hook), looked_at_before_(trace.looked_at) {
    trace.in_hook = node;
    trace.looked_at = looked_at;
    ++trace.family->hooks_running;
  }
  ~RunningHook() {
    trace_.in_hook = before_;
    trace_.looked_at = looked_at_before_;
    --trace_.family->hooks_running;
  }
  RunningHook(const RunningHook&) = delete;
  RunningHook& operator=(const RunningHook&) = delete;

 private:
  TraceState& trace_;
  NodeId before_;
  std::set<NodeId>* looked_at_before_;
};

/// Finds out what the edits of these traces change at `node`: compares overlays, calls hooks.
void resolve(std::span<TraceState* const> traces, NodeId node);

/// See `read_all` in trace.h.
std::vector<at::Tensor> read_states(std::span<TraceState* const> traces, NodeId node, const Positions& positions,
                                    const ReadAllOptions& options = {});
/// Calls every hook on nodes up to `until`, in computing order, and computes `until`.
void run_states(std::span<TraceState* const> traces, NodeId until);

}  // namespace glassformer
