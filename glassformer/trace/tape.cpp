#include "glassformer/trace/tape.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/cat.h>
#include <c10/core/impl/COW.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/joint_hook.h"
#include "glassformer/trace/state.h"

namespace glassformer {

void Taped::give(at::Tensor value) {
  given = std::move(value);
  used = lazy_clone(given);
}

void Tape::forget_after(const Begin& begin, NodeId node) {
  std::erase_if(values, [&](const auto& entry) { return begin.reaches(node, entry.first); });
}

void Tape::renew(const Begin& begin, NodeId node) {
  Taped& taped = values.at(node);
  if (taped.given.const_data_ptr() == taped.used.const_data_ptr() || is_same(taped.given, taped.used)) return;
  taped.give(lazy_clone(taped.used));
  forget_after(begin, node);
}

void Tape::strip(NodeId node) {
  const auto found = values.find(node);
  if (found == values.end()) return;
  if (!found->second.computed.defined()) {
    values.erase(found);
    return;
  }
  Taped& taped = found->second;
  taped.give(lazy_clone(taped.computed));
  taped.n_applied = 0;
}

namespace {

bool can_share_memory(const at::Tensor& tensor) {
  const auto bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  const bool most_of_it = tensor.is_non_overlapping_and_dense() && 2 * bytes >= tensor.storage().nbytes();
  const c10::StorageImpl* const memory = tensor.storage().unsafeGetStorageImpl();
  return most_of_it &&
         (c10::impl::cow::is_cow_data_ptr(memory->data_ptr()) || c10::impl::cow::has_simple_data_ptr(*memory));
}

}  // namespace

at::Tensor lazy_clone(const at::Tensor& tensor) {
  if (!tensor.requires_grad()) return lazy_clone_detached(tensor);
  return can_share_memory(tensor) ? at::_lazy_clone(tensor) : tensor.clone(at::MemoryFormat::Contiguous);
}

at::Tensor lazy_clone_detached(const at::Tensor& tensor) {
  if (!can_share_memory(tensor)) return tensor.detach().clone(at::MemoryFormat::Contiguous);
  // What torch's operator does, without its dispatcher, which takes several times as long.
  auto clone = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(c10::impl::cow::lazy_clone_storage(*tensor.storage().unsafeGetStorageImpl())), tensor.key_set(),
      tensor.dtype());
  clone->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return at::Tensor(std::move(clone));
}

namespace {

std::vector<const Entry*> entries_on(const TraceState& trace, NodeId node) {
  std::vector<const Entry*> found;
  for (const Entry& entry : trace.entries)
    if (entry.edit->node == node && entry.edit->is_put()) found.push_back(&entry);
  return found;
}

bool is_root(const Entry& entry) {
  if (entry.edit->overlay && entry.edit->overlay->requires_grad()) return true;
  return std::any_of(entry.results.begin(), entry.results.end(), [](const HookResult& result) {
    return result.overlay && result.overlay->overlay->requires_grad();
  });
}

RowSet all_rows(const TraceState& trace, NodeId node) { return {trace.begin().first(node), trace.length}; }

// A constant in the place of all that was computed.
bool replaces_all(const TraceState& trace, const Entry& entry) {
  const std::optional<Overlay>& overlay = entry.edit->overlay;
  return overlay && overlay->whole_rows() && !entry.edit->made_from.defined() &&
         overlay->rows() == all_rows(trace, entry.edit->node);
}

bool needs_step(const TraceState& trace, NodeId node) {
  const std::vector<const Entry*> entries = entries_on(trace, node);
  return entries.empty() || !replaces_all(trace, *entries.front());
}

bool is_complete(const TraceState& trace, NodeId node) {
  const auto found = trace.tape.values.find(node);
  return found != trace.tape.values.end() && found->second.n_applied == entries_on(trace, node).size();
}

}  // namespace

std::vector<bool> nodes_with_graph(const TraceState& trace) {
  if (!at::GradMode::is_enabled()) return {};
  const Weights& weights = trace.family->model->weights();
  const bool from_weights = weights.any_requires_grad();
  const bool from_edits = std::any_of(trace.entries.begin(), trace.entries.end(), is_root);
  const bool from_start = trace.given_with_graph.defined();
  if (!trace.tracked && !from_weights && !from_edits && !from_start) return {};
  std::vector<bool> found(trace.graph().nodes().size(), false);
  for (const Node& node : trace.graph().nodes()) {
    if (trace.begin().first(node.id) == Begin::kNever) continue;
    bool needs = trace.tracked && !node.is_input;
    const bool is_given = node.id == trace.begin().source();
    needs = needs || (is_given && from_start);
    if (!needs && !is_given)
      for (const Step* step : {&node.open, &node.fast}) {
        for (const StepInput& input : step->inputs) needs = needs || found[static_cast<size_t>(input.node)];
        for (WeightId weight : step->weights) needs = needs || (from_weights && weights.requires_grad(weight));
      }
    found[static_cast<size_t>(node.id)] = needs;
    if (from_edits && !needs)
      for (const Entry* entry : entries_on(trace, node.id))
        if (is_root(*entry)) found[static_cast<size_t>(node.id)] = true;
  }
  return found;
}

bool is_left_out(const TraceState& trace, const StepInput& input) {
  return input.optional && !trace.family->mask_given && entries_on(trace, input.node).empty();
}

bool is_beside(const Graph& graph, const Node& node, NodeId other) {
  const auto leads_to = [&](const StepInput& input) { return other == input.node || graph.reaches(other, input.node); };
  return std::any_of(node.fast.inputs.begin(), node.fast.inputs.end(), leads_to) &&
         std::none_of(node.open.inputs.begin(), node.open.inputs.end(), leads_to);
}

bool can_be_fast(const TraceState& trace, const Node& node) {
  return trace.begin().has_fast(node) && std::none_of(node.skipped.begin(), node.skipped.end(), [&](NodeId skipped) {
           return !entries_on(trace, skipped).empty();
         });
}

std::pair<const Step*, bool> recorded_step(const TraceState& trace, NodeId id) {
  const Node& node = trace.graph().node(id);
  bool fast = can_be_fast(trace, node);
  // On the graph of what somebody holds already, unless an edit beside it counts.
  if (fast && std::any_of(node.skipped.begin(), node.skipped.end(), [&](NodeId at) { return trace.tape.has(at); }))
    fast = std::any_of(trace.entries.begin(), trace.entries.end(), [&](const Entry& entry) {
      return entry.edit->is_put() && is_beside(trace.graph(), node, entry.edit->node);
    });
  return {fast ? &node.fast : &node.open, fast};
}

at::Tensor plain_value(TraceState& trace, NodeId node, const RowSet& rows) {
  TraceState* const self = &trace;
  resolve(std::span<TraceState* const>(&self, 1), node);
  evaluate({trace.request(node, rows)}, {.keep_requested = false, .trim = false});
  at::Tensor value = trace.collected(node, rows.rows());
  trace.family->trim();
  return value;
}

at::Tensor plain_value(TraceState& trace, NodeId node) { return plain_value(trace, node, all_rows(trace, node)); }

at::Tensor run_whole_step(TraceState& trace, const Node& node, const Step& step,
                          const std::vector<at::Tensor>& inputs) {
  const int64_t first = trace.begin().first(node.id), begin = std::max(first, trace.begin().given(node.id));
  const RowSet rows(begin, trace.length);
  int64_t length_class = 0;
  for (const Entry& entry : trace.entries)
    if (entry.edit->kind == Edit::Kind::kLength) length_class = entry.edit->length_class;
  std::vector<at::Tensor> given = inputs;
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i].defined()) continue;
    const NodeId input = step.inputs[i].node;
    const int64_t before = step.inputs[i].reach == Reach::kSameRow ? begin - trace.begin().first(input) : 0;
    const int axis = trace.graph().node(input).row_axis;
    if (before > 0) given[i] = given[i].narrow(axis, before, given[i].size(axis) - before);
    if (step.by_row) given[i] = given[i].flatten(0, 1);
  }
  const std::optional<QueryMask>& mask = trace.family->query_mask;
  at::Tensor output = step.run({given, trace.family->model->weights(), rows, trace.length, length_class,
                                mask && !step.by_row ? &*mask : nullptr});
  if (step.by_row) output = output.unflatten(0, {trace.family->batch, rows.count()});
  if (begin == first) return output;
  const Request past{trace.family.get(), &trace.family->lineages.root(), node.id, RowSet(first, begin)};
  return at::cat({gather(past), output}, node.row_axis);
}

namespace {

class Recorder {
 public:
  Recorder(std::span<TraceState* const> traces, NodeId target) : traces_(traces), target_(target) {}

  void run() {
    for (TraceState* trace : traces_) plan(*trace);
    for (NodeId node = 0; node <= target_; ++node) {
      call_plain_hooks(node);
      std::vector<TraceState*> due;
      for (size_t i = 0; i < traces_.size(); ++i) {
        if (!wanted_[i][static_cast<size_t>(node)] || is_complete(*traces_[i], node)) continue;
        due.push_back(traces_[i]);
        compute(*traces_[i], node, steps_[i]);
      }
      apply_edits(due, node);
    }
  }

 private:
  using Steps = std::map<NodeId, std::pair<const Step*, bool>>;

  // Hooks are called in computing order, those on nodes without a graph too.
  void call_plain_hooks(NodeId node) {
    std::vector<TraceState*> due;
    for (TraceState* trace : traces_) {
      if (trace->tape.recorded[static_cast<size_t>(node)]) continue;
      const bool waits = std::any_of(trace->entries.begin(), trace->entries.end(), [&](const Entry& entry) {
        return entry.edit->node == node && entry.edit->hook && !entry.from &&
               trace->family->lineages.concerns(*entry.edit, target_);
      });
      if (waits) due.push_back(trace);
    }
    if (!due.empty()) resolve(due, node);
  }

  void plan(TraceState& trace) {
    std::vector<bool> recorded = nodes_with_graph(trace);
    const auto is_new = [&](size_t node) { return recorded[node] && !trace.tape.recorded[node]; };
    for (size_t node = 0; node < trace.tape.recorded.size(); ++node)
      if (is_new(node)) {
        trace.tape.clear();  // What was made without this node's graph.
        break;
      }
    std::vector<bool> wanted(static_cast<size_t>(target_) + 1, false);
    wanted.back() = true;
    Steps steps;  // Chosen once: what is on the tape changes while it is made.
    for (NodeId node = target_; node >= 0; --node) {
      if (!wanted[static_cast<size_t>(node)] || trace.tape.has(node) || !needs_step(trace, node) ||
          node == trace.begin().source())
        continue;
      steps[node] = recorded_step(trace, node);
      for (const StepInput& input : steps[node].first->inputs)
        if (recorded[static_cast<size_t>(input.node)] && !is_left_out(trace, input))
          wanted[static_cast<size_t>(input.node)] = true;
    }
    trace.tape.recorded = std::move(recorded);
    wanted_.push_back(std::move(wanted));
    steps_.push_back(std::move(steps));
  }

  static at::Tensor input_value(TraceState& trace, const StepInput& input) {
    if (is_left_out(trace, input)) return {};
    const auto found = trace.tape.values.find(input.node);
    if (found != trace.tape.values.end()) return found->second.used;
    if (trace.tape.recorded[static_cast<size_t>(input.node)])  // Nothing but a fault of ours; no graph may be lost.
      throw UnavailableError(trace.graph().node(input.node).name + ": its graph was not made");
    return plain_value(trace, input.node);
  }

  // Puts what the node's step makes onto the tape.
  static void compute(TraceState& trace, NodeId id, const Steps& steps) {
    if (trace.tape.has(id)) return;
    if (trace.family->poll) trace.family->poll();
    Taped taped;
    const Node& node = trace.graph().node(id);
    if (id == trace.begin().source()) {
      taped.computed = trace.given_value();
    } else if (needs_step(trace, id)) {
      const auto [step, fast] = steps.at(id);
      std::vector<at::Tensor> inputs;
      for (const StepInput& input : step->inputs) inputs.push_back(input_value(trace, input));
      taped.fast = fast;
      taped.computed = run_whole_step(trace, node, *step, inputs);
      trace.family->rows_computed[static_cast<size_t>(id)] += trace.family->batch * taped.computed.size(node.row_axis);
    }
    if (taped.computed.defined()) {
      if (trace.tracked && !taped.computed.requires_grad() && node.choices == 0)
        taped.computed = taped.computed.detach().clone().requires_grad_();
      taped.give(lazy_clone(taped.computed));
    }
    trace.tape.values[id] = std::move(taped);
  }

  // The edits in their order; a hook of a batch waits until all of its traces have come to it.
  void apply_edits(const std::vector<TraceState*>& due, NodeId node) {
    for (bool waiting = true; waiting;) {
      waiting = false;
      std::vector<TraceState*> at_joint_hook;
      for (TraceState* trace : due) {
        const std::vector<const Entry*> entries = entries_on(*trace, node);
        size_t next = trace->tape.values[node].n_applied;
        for (; next < entries.size(); ++next) {
          const Edit& edit = *entries[next]->edit;
          if (edit.hook && edit.hook->joint && is_made_here(*trace, node)) break;
          apply(*trace, node, *entries[next]);
        }
        if (next < entries.size()) at_joint_hook.push_back(trace);
      }
      if (!at_joint_hook.empty()) {
        apply_joint_hook(at_joint_hook, node);
        waiting = true;
      }
    }
  }

  static void take(TraceState& trace, NodeId node, at::Tensor value) {
    Taped& taped = trace.tape.values[node];
    if (trace.tracked && !value.requires_grad() && trace.graph().node(node).choices == 0)
      value = lazy_clone(value.detach().clone().requires_grad_());
    taped.give(std::move(value));
    ++taped.n_applied;
  }

  // Whether a hook's input is what is on the tape: a choice has no graph, but what it is made of has one.
  static bool is_made_here(TraceState& trace, NodeId node) {
    return trace.tape.values[node].used.requires_grad() || trace.graph().node(node).choices > 0;
  }

  void apply(TraceState& trace, NodeId id, const Entry& entry) const {
    const std::shared_ptr<Edit> edit = entry.edit;
    const at::Tensor base = trace.tape.values[id].used;
    const RowSet rows = all_rows(trace, id);
    switch (edit->kind) {
      case Edit::Kind::kOverlay:
        if (edit->made_from.defined()) require_same_source(trace, entry, base);
        take(trace, id, edit->overlay->applied(replaces_all(trace, entry) ? at::Tensor() : base, rows));
        return;
      case Edit::Kind::kHook:
        take(trace, id,
             is_made_here(trace, id) ? hooked(trace, id, *edit->hook, base) : with_results(trace, edit, base));
        return;
      case Edit::Kind::kGradient: {
        at::Tensor value = lazy_clone(base);
        if (value.requires_grad()) watch_gradient(trace, id, edit, value);
        take(trace, id, value);
        return;
      }
      default:
        return;
    }
  }

  // A hook whose input carries no graph is called as ever; what it made may carry one.
  at::Tensor with_results(const TraceState& trace, const std::shared_ptr<Edit>& edit, const at::Tensor& base) const {
    resolve(traces_, edit->node);
    at::Tensor value = base;
    for (const Entry& entry : trace.entries)
      if (entry.edit == edit)
        for (const HookResult& result : entry.results)
          if (result.overlay) value = result.overlay->overlay->applied(value, all_rows(trace, edit->node));
    return lazy_clone(value);
  }

  static at::Tensor hooked(TraceState& trace, NodeId id, Hook& hook, const at::Tensor& base) {
    const Node& node = trace.graph().node(id);
    at::Tensor value = base;
    for (const HookSegment& segment : segments_of(trace, id, hook.options)) {
      const at::Tensor before = part_of(trace, base, node, segment);
      if (!before.requires_grad()) {  // A choice: it may have been made without a graph before.
        const at::Tensor input = before.clone(at::MemoryFormat::Contiguous);
        if (const HookResult* known = remembered(hook, segment, input, hash_of(input)); known != nullptr) {
          if (known->overlay) value = known->overlay->overlay->applied(value, all_rows(trace, id));
          continue;
        }
      }
      const at::Tensor after = call_hook(trace, node, segment, hook, before);
      value = put_segment(trace, node, segment, value, after);
      remember(trace, node, segment, hook, before, after);
    }
    return lazy_clone(value);
  }

  static at::Tensor part_of(const TraceState& trace, const at::Tensor& value, const Node& node,
                            const HookSegment& segment) {
    const int64_t first = segment.begin - trace.begin().first(node.id);
    const at::Tensor rows = value.narrow(node.row_axis, first, segment.end - segment.begin);
    return node.has_keys() ? rows.narrow(3, 0, segment.end) : rows;
  }

  static at::Tensor put_segment(const TraceState& trace, const Node& node, const HookSegment& segment,
                                const at::Tensor& value, const at::Tensor& after) {
    return segment_overlay(trace, node, segment, after)->overlay->applied(value, all_rows(trace, node.id));
  }

  // So that the same numbers without a graph are no new input.
  static void remember(const TraceState& trace, const Node& node, const HookSegment& segment, Hook& hook,
                       const at::Tensor& before, const at::Tensor& after) {
    const at::NoGradGuard no_grad;
    const at::Tensor input = before.detach().clone(at::MemoryFormat::Contiguous);
    remember_call(hook, hash_of(input), input, hook_result(trace, node, segment, input, after.detach()));
  }

  static void watch_gradient(const TraceState& trace, NodeId id, const std::shared_ptr<Edit>& edit,
                             const at::Tensor& value) {
    const std::shared_ptr<const Model> model = trace.family->model;
    value.register_hook([model, id, edit, length = trace.length](const at::Tensor& gradient) {
      const Node& node = model->graph().node(id);
      at::Tensor given = gradient.clone();
      const at::Tensor changed = edit->gradient(given, HookCall(node, 0, 0, length, nullptr));
      if (!changed.defined()) return given;
      if (changed.sizes() != gradient.sizes())
        throw ShapeError(str(node.name, ": expected a gradient of shape ", shape_text(gradient.sizes()), "; found ",
                             shape_text(changed.sizes())));
      return changed.to(gradient.options());
    });
  }

  static void apply_joint_hook(const std::vector<TraceState*>& traces, NodeId id) {
    const Node& node = traces.front()->graph().node(id);
    const auto next_edit = [id](const TraceState& trace) {
      return entries_on(trace, id)[trace.tape.values.at(id).n_applied]->edit;
    };
    const std::shared_ptr<Edit> edit = next_edit(*traces.front());
    std::vector<JointMember> members;
    std::vector<at::Tensor> values;
    for (TraceState* trace : traces) {
      if (next_edit(*trace)->hook->joint != edit->hook->joint) continue;
      members.push_back({trace, nullptr, {}});
      values.push_back(trace->tape.values.at(id).used);
    }
    require_whole_batch(members, *edit->hook, node);
    const size_t n_segments = segments_of(*members.front().trace, id, edit->hook->options).size();
    for (size_t number = 0; number < n_segments; ++number) {
      std::vector<at::Tensor> inputs;
      for (size_t i = 0; i < members.size(); ++i) {
        const std::vector<HookSegment> segments = segments_of(*members[i].trace, id, edit->hook->options);
        if (segments.size() != n_segments) refuse_unequal_segments();
        members[i].segment = segments[number];
        inputs.push_back(part_of(*members[i].trace, values[i], node, members[i].segment));
      }
      const std::vector<at::Tensor> made = call_padded(members, inputs, *edit->hook, node);
      for (size_t i = 0; i < members.size(); ++i)
        values[i] = put_segment(*members[i].trace, node, members[i].segment, values[i], made[i]);
    }
    for (size_t i = 0; i < members.size(); ++i) take(*members[i].trace, id, lazy_clone(values[i]));
  }

  std::span<TraceState* const> traces_;
  NodeId target_;
  std::vector<std::vector<bool>> wanted_;  // Of each trace, by node.
  std::vector<Steps> steps_;
};

}  // namespace

void record(std::span<TraceState* const> traces, NodeId node) { Recorder(traces, node).run(); }

}  // namespace glassformer
