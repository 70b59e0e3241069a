#include "glassformer/trace/joint_hook.h"

#include <ATen/ExpandUtils.h>

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

struct Member {
  TraceState* trace;
  Entry* entry;
  HookSegment segment;
};

// The same segment of every trace; empty where none is left.
std::vector<Member> next_segments(const std::vector<std::pair<TraceState*, Entry*>>& traces) {
  std::vector<Member> members;
  for (const auto& [trace, entry] : traces)
    if (const std::vector<HookSegment> segments = hook_segments(*trace, *entry); !segments.empty())
      members.push_back({trace, entry, segments.front()});
  const bool alike = std::all_of(members.begin(), members.end(), [&](const Member& member) {
    return member.segment.number == members.front().segment.number;
  });
  if (!alike || (!members.empty() && members.size() != traces.size()))
    throw OrderError("the traces of a batch have different numbers of segments: append to all of them");
  return members;
}

std::vector<at::Tensor> inputs_of(const std::vector<Member>& members, const Node& node) {
  std::vector<Request> requests;
  for (const Member& member : members) requests.push_back(input_of(*member.trace, node.id, member.segment));
  evaluate(requests, {.keep_requested = false, .trim = false});
  std::vector<at::Tensor> inputs;
  for (const Member& member : members) inputs.push_back(hook_input(*member.trace, node, member.segment));
  return inputs;
}

// The part of the padded tensor that belongs to one trace.
at::Tensor own_part(const at::Tensor& padded, size_t member, const at::Tensor& input, const Node& node) {
  at::Tensor own = padded.narrow(0, static_cast<int64_t>(member), 1);
  for (const int64_t axis : {int64_t{node.row_axis}, int64_t{3}})
    if (axis == node.row_axis || node.has_keys())
      own = own.narrow(axis, own.size(axis) - input.size(axis), input.size(axis));
  return own;
}

std::vector<HookResult> call(const std::vector<Member>& members, const std::vector<at::Tensor>& inputs,
                             const Hook& hook, const Node& node) {
  int64_t begin = 0, end = 0;
  std::vector<std::unique_ptr<RunningHook>> running;
  for (const Member& member : members) {
    begin = std::max(begin, member.segment.begin);
    end = std::max(end, member.segment.end);
    running.push_back(std::make_unique<RunningHook>(*member.trace, node.id));
  }
  const at::Tensor given = pad_left(inputs, node, node.absent).values;
  at::Tensor after = hook.function(given, HookCall(node, members.front().segment.number, begin, end, nullptr));
  if (!after.defined()) after = given;
  if (!at::is_expandable_to(after.sizes(), given.sizes()))
    throw ShapeError(str(node.name, ": expected a value of shape ", shape_text(given.sizes()),
                         " or one that broadcasts to it; found ", shape_text(after.sizes())));
  after = after.expand_as(given);
  std::vector<HookResult> results;
  for (size_t i = 0; i < members.size(); ++i)
    results.push_back(
        hook_result(*members[i].trace, node, members[i].segment, inputs[i], own_part(after, i, inputs[i], node)));
  return results;
}

bool are_same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), is_same);
}

// What the hook made of these segments, by an earlier call with the same numbers or a new one.
std::vector<HookResult> results_of(const std::vector<Member>& members, JointHook& joint, const Hook& hook,
                                   const Node& node) {
  const std::vector<at::Tensor> inputs = inputs_of(members, node);
  auto hash = static_cast<uint64_t>(members.front().segment.number);
  for (const at::Tensor& input : inputs) hash = hash * 31 + hash_of(input);
  const auto [begin, end] = joint.calls.equal_range(hash);
  for (auto known = begin; known != end; ++known) {
    const std::vector<HookResult>& results = known->second.results;
    bool alike = are_same(known->second.inputs, inputs);
    for (size_t i = 0; i < members.size() && alike; ++i)
      alike = results[i].begin == members[i].segment.begin && results[i].end == members[i].segment.end;
    if (alike) return results;
  }
  std::vector<HookResult> results = call(members, inputs, hook, node);
  joint.calls.emplace(hash, JointHook::Call{inputs, results});
  for (size_t i = 0; i < members.size(); ++i)
    if (results[i].overlay) members[i].entry->edit->hook->made.push_back(results[i].overlay);
  return results;
}

}  // namespace

void settle_joint_hook(std::span<TraceState* const> traces, NodeId node) {
  const Edit* first = nullptr;
  for (TraceState* trace : traces)
    if (const Entry* entry = trace->next_unresolved(node); entry != nullptr)
      if (first == nullptr || std::pair(entry->edit->node, entry->edit->id) < std::pair(first->node, first->id))
        first = entry->edit.get();
  const std::shared_ptr<JointHook> joint = first->hook->joint;
  const NodeId hooked = first->node;
  const Hook hook{first->hook->function, first->hook->options, joint};
  std::vector<std::pair<TraceState*, Entry*>> all;
  size_t shared = SIZE_MAX;  // How many segments all of them have results of.
  for (TraceState* trace : traces)
    for (Entry& entry : trace->entries) {
      if (!entry.edit->hook || entry.edit->hook->joint != joint) continue;
      all.emplace_back(trace, &entry);
      shared = std::min(shared, entry.results.size());
    }
  if (all.size() != joint->size)
    throw UnavailableError(str("the hook on ", traces.front()->graph().node(hooked).name, " was put onto a batch of ",
                               joint->size, " prompts: read the batch, or put hooks onto its traces one by one"));
  for (const auto& [trace, entry] : all) {
    // What one of them changed is a new input for all.
    if (entry->from || entry->results.size() > shared) trace->forget_effects(hooked);
    entry->from.reset();
    trace->clear_results(*entry, shared == 0 ? 0 : entry->results[shared - 1].end);
  }
  const Node& at = traces.front()->graph().node(hooked);
  for (std::vector<Member> members = next_segments(all); !members.empty(); members = next_segments(all)) {
    const std::vector<HookResult> results = results_of(members, *joint, hook, at);
    for (size_t i = 0; i < members.size(); ++i) members[i].trace->add_result(*members[i].entry, results[i]);
  }
  for (const auto& [trace, entry] : all) entry->from = 0;
}

}  // namespace glassformer
