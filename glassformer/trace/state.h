#pragma once
// Internal to trace/: a trace from the inside, its edits and what they change.

#include <optional>
#include <span>
#include <vector>

#include "glassformer/trace/evaluator.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

/// The tokens of a trace and of those forks that only follow it. A trace that stands at the end may append in place;
/// one that another has overtaken starts a stem of its own.
struct Stem {
  int64_t length = 0;
};

constexpr int64_t kNothing = INT64_MAX;  // The first position that an edit without effect changes.

/// An edit as one trace has it.
struct Entry {
  std::shared_ptr<Edit> edit;
  std::optional<int64_t> from = {};      // Once known: the first position that it changes, or `kNothing`.
  std::vector<HookResult> results = {};  // Of a hook: what it made of the segments, as far as it was called.
  uint64_t settled_under = 0;            // What it was compared with when `from` was found out last,
  int64_t settled = -1;                  // and what came out; -1: never.

  /// Whether it is known to change something; what a hook changes are its results' overlays.
  bool changes() const { return from && *from != kNothing && edit->kind != Edit::Kind::kHook; }
};

struct TraceState {
  std::shared_ptr<Family> family;
  std::shared_ptr<Stem> stem;
  int64_t length = 0;
  std::vector<int64_t> segments;         // Where the prompt and each append begin.
  std::vector<Entry> entries;            // In the order in which they count: by node, then as made.
  NodeId in_hook = -1;                   // While a hook runs: its node.
  mutable Lineage* all_known = nullptr;  // All that is known to change something; null: to be put together again.

  ~TraceState();
  const Graph& graph() const { return family->graph(); }

  // --- Giving (state.cpp)
  void start(const at::Tensor& tokens, const TraceOptions& options);
  void append(const at::Tensor& tokens);
  void truncate(int64_t to_length);
  void cut_edits(int64_t to_length);
  at::Tensor as_tokens(const at::Tensor& given) const;
  void give(NodeId node, int64_t begin, const at::Tensor& value);
  void update_length_class();

  // --- Edits (state.cpp)
  /// `OrderError` while a hook runs.
  void require_editable() const;
  void add(std::shared_ptr<Edit> edit);
  void add_hook(NodeId node, Hook hook);
  void drop(NodeId node);
  /// What edits after `node` change must be found out again, where an edit of it from `first_row` on may matter.
  void forget_effects(NodeId node, int64_t first_row = 0);
  void forget_effect(Entry& entry, int64_t first_row);
  /// Whether a query may see keys after it, now or once all hooks are called.
  bool may_look_ahead() const;
  void add_result(Entry& entry, HookResult result);
  /// Drops what a hook made of segments that go on after `from`.
  void clear_results(Entry& entry, int64_t from = 0);
  std::shared_ptr<Edit> make_overlay(const Node& node, const at::Tensor& value, const Region& region,
                                     int64_t length) const;

  // --- Which edits reach a node (resolve.cpp)
  /// Those edits that are known to change `node`, up to `before`.
  Lineage& lineage_of(NodeId node, const Entry* before = nullptr) const;
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

  // --- Reading (resolve.cpp)
  Request request(NodeId node, const RowSet& rows) const { return {family.get(), &lineage_of(node), node, rows}; }
  std::vector<int64_t> shape_of(const Node& node, int64_t at_length) const;
  std::vector<int64_t> absolute(const Positions& positions) const;
  /// The rows in the order asked for, in memory that nobody else holds.
  at::Tensor collected(NodeId node, const std::vector<int64_t>& rows) const;
};

/// The rows of a request's node that are computed.
RowSet valid_rows(const Request& request);

/// Marks a trace while one of its hooks runs.
class RunningHook {
 public:
  RunningHook(TraceState& trace, NodeId node) : trace_(trace), before_(trace.in_hook) { trace.in_hook = node; }
  ~RunningHook() { trace_.in_hook = before_; }
  RunningHook(const RunningHook&) = delete;
  RunningHook& operator=(const RunningHook&) = delete;

 private:
  TraceState& trace_;
  NodeId before_;
};

/// Finds out what the edits of these traces change at `node`: compares overlays, calls hooks.
void resolve(std::span<TraceState* const> traces, NodeId node);

/// See `read_all` in trace.h.
std::vector<at::Tensor> read_states(std::span<TraceState* const> traces, NodeId node, const Positions& positions,
                                    const ReadAllOptions& options = {});
/// Calls every hook on nodes up to `until`, in computing order, and computes `until`.
void run_states(std::span<TraceState* const> traces, NodeId until);

}  // namespace glassformer
