#include "glassformer/trace/batch.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/joint_hook.h"
#include "glassformer/trace/migration.h"

namespace glassformer {

Batch::Batch(std::vector<Trace> traces) : traces_(std::move(traces)) {
  if (traces_.empty()) throw InputError("no prompts");
  for (const Trace& trace : traces_) {
    if (trace.batch() != 1) throw InputError(str("each trace of a batch holds one sequence; found ", trace.batch()));
    if (trace.begin() > 0) throw UnsupportedError("a trace with a past can't be part of a batch: read it by itself");
  }
}

Batch::Batch(const std::shared_ptr<const Model>& model, const std::vector<std::string>& texts,
             const TraceOptions& options) {
  if (texts.empty()) throw InputError("no prompts");
  if (!options.past.empty()) throw UnsupportedError("a batch of texts takes no past: give each a trace of its own");
  for (const std::string& text : texts) traces_.emplace_back(model, text, options);
}

int64_t Batch::length() const {
  int64_t longest = 0;
  for (const Trace& trace : traces_) longest = std::max(longest, trace.length());
  return longest;
}

at::Tensor Batch::mask() const {
  at::Tensor mask = at::zeros({size(), length()}, at::TensorOptions(model().weights().device()).dtype(at::kBool));
  for (size_t i = 0; i < traces_.size(); ++i)
    mask.narrow(0, static_cast<int64_t>(i), 1)
        .narrow(1, length() - traces_[i].length(), traces_[i].length())
        .fill_(true);
  return mask;
}

std::vector<Trace*> Batch::pointers() {
  std::vector<Trace*> pointers;
  for (Trace& trace : traces_) pointers.push_back(&trace);
  return pointers;
}

at::Tensor Batch::read(std::string_view name) {
  const Node& node = model().graph().node(model().graph().find(name));
  return pad_left(read_all(pointers(), name, std::nullopt, {.keep_values = true}), node, node.absent).values;
}

at::Tensor Batch::read_at(std::string_view name, int64_t position) {
  const Node& node = model().graph().node(model().graph().find(name));
  const std::vector<at::Tensor> values = read_all(pointers(), name, Positions{{position}}, {.keep_values = true});
  if (node.has_keys())
    throw InputError(str(node.name, " has as many keys as its trace has tokens: read it trace by trace"));
  return at::cat(values, 0);
}

void Batch::set(std::string_view name, const at::Tensor& value, const Region& region) {
  const Node& node = model().graph().node(model().graph().find(name));
  std::vector<int64_t> shape;
  for (const Axis& axis : node.axes)
    shape.push_back(axis.word == "batch" ? size() : axis.size == 0 ? length() : axis.size);
  const at::Device device = model().weights().device();
  const at::ScalarType dtype = node.is_input ? at::kLong : model().weights().dtype();
  const RowSet rows(0, shape[static_cast<size_t>(node.row_axis)]);
  const auto on = at::TensorOptions(device);
  const at::Tensor values =
      Overlay(node, shape, region, value, dtype, device).applied(at::zeros(shape, on.dtype(dtype)), rows);
  const at::Tensor covered = Overlay(node, shape, region, at::ones({}, on), at::kBool, device)
                                 .applied(at::zeros(shape, on.dtype(at::kBool)), rows);
  for (size_t i = 0; i < traces_.size(); ++i) {
    const auto own = [&](at::Tensor all) {
      all = all.narrow(0, static_cast<int64_t>(i), 1);
      for (int64_t axis : {int64_t{node.row_axis}, int64_t{3}})
        if (axis == node.row_axis || node.has_keys())
          all = all.narrow(axis, length() - traces_[i].length(), traces_[i].length());
      return all;
    };
    traces_[i].set(name, own(values), Region::where(own(covered).contiguous()));
  }
}

void Batch::hook(std::string_view name, const HookFunction& function, const HookOptions& options) {
  const NodeId node = model().graph().find(name);
  const auto joint = std::make_shared<JointHook>();
  joint->size = traces_.size();
  std::vector<std::unique_ptr<InUse>> in_use;
  for (Trace& trace : traces_) in_use.push_back(std::make_unique<InUse>(*trace.state_->family));
  for (Trace& trace : traces_) trace.state_->begin_editing();  // All of them or none.
  for (Trace& trace : traces_) trace.state_->add_hook(node, {function, options, joint});
}

void Batch::run(std::string_view until) {
  std::vector<TraceState*> states;
  for (Trace& trace : traces_) states.push_back(trace.state_.get());
  run_states(states, model().graph().find(until));
}

void Batch::unset(std::string_view node) {
  for (Trace& trace : traces_) trace.unset(node);
}

Batch Batch::fork() const {
  std::vector<Trace> forks;
  for (const Trace& trace : traces_) forks.push_back(trace.fork());
  return Batch(std::move(forks));
}

Batch Batch::fork(const std::shared_ptr<const Model>& extended) const {
  if (extended.get() == &model()) return fork();
  Migration migration(extended);
  std::vector<Trace> forks;
  for (const Trace& trace : traces_) forks.push_back(Trace(migration.moved(*trace.state_)));
  return Batch(std::move(forks));
}

}  // namespace glassformer
