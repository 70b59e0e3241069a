#pragma once
// Internal to trace/: the segments that hooks are called on, and hooks of a batch, called once for all its traces.

#include <span>
#include <unordered_map>
#include <vector>

#include "glassformer/trace/state.h"

namespace glassformer {

/// A segment that a hook is still to be called on.
struct HookSegment {
  int64_t number = 0, begin = 0, end = 0;
  Lineage* input = nullptr;  // What its value depends on,
  int64_t weight_epoch = 0;  // and with which weights.

  HookKey key() const { return {weight_epoch, begin, end, input->id()}; }
};

/// The segments from position `done` on that a hook on `node` with these options is called on.
std::vector<HookSegment> segments_of(const TraceState& trace, NodeId node, const HookOptions& options,
                                     int64_t done = 0);
/// Those of `entry`'s hook that it has no result for, each with what its value depends on.
std::vector<HookSegment> hook_segments(const TraceState& trace, const Entry& entry);
Request input_of(const TraceState& trace, NodeId node, const HookSegment& segment);
/// What a hook gets; in memory that nobody else holds.
at::Tensor hook_input(const TraceState& trace, const Node& node, const HookSegment& segment);
/// What the hook makes of a copy of `before`: what it returned, or the copy.
at::Tensor call_hook(TraceState& trace, const Node& node, const HookSegment& segment, Hook& hook,
                     const at::Tensor& before);
/// The result of an earlier call with the same numbers, or null.
const HookResult* remembered(const Hook& hook, const HookSegment& segment, const at::Tensor& input, uint64_t hash);
void remember_call(Hook& hook, uint64_t hash, const at::Tensor& input, const HookResult& result);
/// Puts `value` into a segment of a node.
std::shared_ptr<Edit> segment_overlay(const TraceState& trace, const Node& node, const HookSegment& segment,
                                      const at::Tensor& value);
HookResult hook_result(const TraceState& trace, const Node& node, const HookSegment& segment, const at::Tensor& before,
                       const at::Tensor& after);
uint64_t hash_of(const at::Tensor& value);
/// The same shape and bits.
bool is_same(const at::Tensor& a, const at::Tensor& b);

/// One hook on all traces of a batch. What it made holds for exactly these inputs of all of them.
struct JointHook {
  struct Call {
    std::vector<at::Tensor> inputs;
    std::vector<HookResult> results;
  };
  size_t size = 0;
  std::unordered_multimap<uint64_t, Call> calls = {};  // By a hash of the inputs.
};

/// One trace of a batch, at a hook of the whole batch.
struct JointMember {
  TraceState* trace;
  Entry* entry;
  HookSegment segment;
};

/// `UnavailableError` where some of the batch are missing.
void require_whole_batch(const std::vector<JointMember>& members, const Hook& hook, const Node& node);
[[noreturn]] void refuse_unequal_segments();
/// Calls the hook once with the padded inputs; what it made of each of them, on their graph.
std::vector<at::Tensor> call_padded(const std::vector<JointMember>& members, const std::vector<at::Tensor>& inputs,
                                    const Hook& hook, const Node& node);

/// Calls the first hook that all of `traces` wait for before `node`; `UnavailableError` where some of its batch are not
/// among them.
void settle_joint_hook(std::span<TraceState* const> traces, NodeId node);

}  // namespace glassformer
