#pragma once
// Internal to trace/: a trace of one graph as a trace of another that was made from it.

#include <memory>
#include <unordered_map>

#include "glassformer/trace/state.h"

namespace glassformer {

/// Moves traces onto an extended model. Edits and hooks come along, each onto the node that it was put onto, and so do
/// the computed values of all nodes that are made as before from the same values.
class Migration {
 public:
  explicit Migration(std::shared_ptr<const Model> to) : to_(std::move(to)) {}

  /// A family of its own that begins with what `trace` has. `InputError` where the model isn't made from the trace's,
  /// or lacks a node that the trace edits.
  std::unique_ptr<TraceState> moved(const TraceState& trace);

 private:
  void match(const Graph& from);
  NodeId place_of(NodeId edited, const Graph& from) const;
  void move_entries(const TraceState& trace, TraceState& made);
  Entry moved(const Entry& entry, const Graph& from, TraceState& made);
  std::shared_ptr<Edit> moved(const std::shared_ptr<Edit>& edit, const Graph& from);
  HookResult moved(const HookResult& result, const Graph& from);
  void move_hook(const Hook& hook, Hook& made, const Graph& from);
  void move_values(const TraceState& trace, TraceState& made);
  void move_cell(Interval rows, const Lineage& lineage, const Node& before, const Node& node, Family& family);

  std::shared_ptr<const Model> to_;
  const Family* family_ = nullptr;  // Of the trace that is moved.
  std::vector<NodeId> twins_;       // For each node of the new graph: the old one that has the same value, or -1.
  std::unordered_map<const Edit*, std::shared_ptr<Edit>> edits_;
  std::unordered_map<const JointHook*, std::shared_ptr<JointHook>> joints_;  // Of all traces that this one moves.
};

}  // namespace glassformer
