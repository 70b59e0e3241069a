#include "glassformer/trace/joint_hook.h"

#include <ATen/ExpandUtils.h>

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

using Member = JointMember;

// The same segment of every trace; empty where none is left.
std::vector<Member> next_segments(const std::vector<Member>& batch) {
  std::vector<Member> members;
  for (const Member& member : batch)
    if (const std::vector<HookSegment> segments = hook_segments(*member.trace, *member.entry); !segments.empty())
      members.push_back({member.trace, member.entry, segments.front()});
  const bool alike = std::all_of(members.begin(), members.end(), [&](const Member& member) {
    return member.segment.number == members.front().segment.number;
  });
  if (!alike || (!members.empty() && members.size() != batch.size())) refuse_unequal_segments();
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
  const std::vector<at::Tensor> made = call_padded(members, inputs, hook, node);
  std::vector<HookResult> results;
  for (size_t i = 0; i < members.size(); ++i)
    results.push_back(hook_result(*members[i].trace, node, members[i].segment, inputs[i], made[i]));
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

std::vector<at::Tensor> call_padded(const std::vector<JointMember>& members, const std::vector<at::Tensor>& inputs,
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
  for (const Member& member : members) member.trace->require_same_weights();
  if (!after.defined()) after = given;
  if (!at::is_expandable_to(after.sizes(), given.sizes()))
    throw ShapeError(str(node.name, ": expected a value of shape ", shape_text(given.sizes()),
                         " or one that broadcasts to it; found ", shape_text(after.sizes())));
  after = after.expand_as(given);
  std::vector<at::Tensor> made;
  for (size_t i = 0; i < members.size(); ++i) made.push_back(own_part(after, i, inputs[i], node));
  return made;
}

void require_whole_batch(const std::vector<JointMember>& members, const Hook& hook, const Node& node) {
  if (members.size() != hook.joint->size)
    throw UnavailableError(str("the hook on ", node.name, " was put onto a batch of ", hook.joint->size,
                               " prompts: read the batch, or put hooks onto its traces one by one"));
}

void refuse_unequal_segments() {
  throw OrderError("the traces of a batch have different numbers of segments: append to all of them");
}

void settle_joint_hook(std::span<TraceState* const> traces, NodeId node) {
  const Edit* first = nullptr;
  for (TraceState* trace : traces)
    if (const Entry* entry = trace->next_unresolved(node); entry != nullptr)
      if (first == nullptr || std::pair(entry->edit->node, entry->edit->id) < std::pair(first->node, first->id))
        first = entry->edit.get();
  const std::shared_ptr<JointHook> joint = first->hook->joint;
  const NodeId hooked = first->node;
  const Hook hook{first->hook->function, first->hook->options, joint};
  std::vector<Member> batch;
  size_t shared = SIZE_MAX;  // How many segments all of them have results of.
  for (TraceState* trace : traces)
    for (Entry& entry : trace->entries) {
      if (!entry.edit->hook || entry.edit->hook->joint != joint) continue;
      batch.push_back({trace, &entry, {}});
      shared = std::min(shared, entry.results.size());
    }
  const Node& at = traces.front()->graph().node(hooked);
  require_whole_batch(batch, hook, at);
  for (const Member& member : batch) {
    // What one of them changed is a new input for all.
    Entry& entry = *member.entry;
    if (entry.from || entry.results.size() > shared) member.trace->forget_effects(hooked);
    entry.from.reset();
    member.trace->clear_results(entry, shared == 0 ? 0 : entry.results[shared - 1].end);
  }
  for (std::vector<Member> members = next_segments(batch); !members.empty(); members = next_segments(batch)) {
    const std::vector<HookResult> results = results_of(members, *joint, hook, at);
    for (size_t i = 0; i < members.size(); ++i) members[i].trace->add_result(*members[i].entry, results[i]);
  }
  for (const Member& member : batch) member.entry->from = 0;
}

}  // namespace glassformer
