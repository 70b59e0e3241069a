#pragma once
// Internal to trace/: the values of one trace with their autograd graph. Where gradients can be asked for, a trace
// keeps whole values here, made step by step with torch's own recording; nobody shares them, so that one fork's
// backward pass leaves the others' graphs alone.

#include <map>
#include <span>
#include <vector>

#include "glassformer/trace/family.h"

namespace glassformer {

struct TraceState;
struct Entry;

/// One node's value with its graph.
struct Taped {
  at::Tensor computed;   // What its step made; undefined where an edit replaces all of it.
  at::Tensor given;      // With the edits so far, in the hands of users.
  at::Tensor used;       // A clone of it, which users can't change: what later steps take.
  size_t n_applied = 0;  // How many of the node's edits are in it.
  bool fast = false;     // Made past the nodes that its step skips.

  /// Hands out `value`, and uses a clone of it.
  void give(at::Tensor value);
};

struct Tape {
  std::map<NodeId, Taped> values;
  std::vector<bool> recorded;  // The nodes that needed a graph when it was used last.

  bool has(NodeId node) const { return values.contains(node); }
  void clear() { values.clear(); }
  /// Drops what depends on `node`.
  void forget_after(const Begin& begin, NodeId node);
  /// Makes another tensor to hand out where a user changed the last one in a way that doesn't count.
  void renew(const Begin& begin, NodeId node);
  /// Takes the edits off a node's value.
  void strip(NodeId node);
};

/// A clone that shares memory until one of both is written to, on the graph of `tensor`.
at::Tensor lazy_clone(const at::Tensor& tensor);
/// The same, off the graph.
at::Tensor lazy_clone_detached(const at::Tensor& tensor);

/// For each node whether its value needs a graph in this trace: gradients are on, and something upstream requires
/// them. Empty where none does.
std::vector<bool> nodes_with_graph(const TraceState& trace);

/// Makes the value of `node`, which needs a graph in each of these traces, with its graph.
void record(std::span<TraceState* const> traces, NodeId node);

/// The step that makes a node in this trace when it is recorded, and whether it is the fast one.
std::pair<const Step*, bool> recorded_step(const TraceState& trace, NodeId node);
/// Whether there is a fast step of `node`, and nothing that it skips is edited.
bool can_be_fast(const TraceState& trace, const Node& node);
/// Whether `other` reaches `node` by its fast step's inputs only, as the shared norm beside the heads' own inputs.
bool is_beside(const Graph& graph, const Node& node, NodeId other);
/// The value of a node without a graph, whole or at some rows.
at::Tensor plain_value(TraceState& trace, NodeId node, const RowSet& rows);
at::Tensor plain_value(TraceState& trace, NodeId node);
/// Runs a step of `node` on whole values.
at::Tensor run_whole_step(TraceState& trace, const Node& node, const Step& step, const std::vector<at::Tensor>& inputs);
/// Whether a step gets nothing for this input.
bool is_left_out(const TraceState& trace, const StepInput& input);

}  // namespace glassformer
