#include "glassformer/trace/trace.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/state.h"

namespace glassformer {

Trace::Trace(std::shared_ptr<const Model> model, const at::Tensor& tokens, const TraceOptions& options)
    : state_(std::make_unique<TraceState>()) {
  const int64_t batch = tokens.dim() == 2 ? tokens.size(0) : 1;
  state_->family = std::make_shared<Family>(std::move(model), batch);
  state_->start(tokens, options);
}

Trace::Trace(std::shared_ptr<const Model> model, std::string_view text, const TraceOptions& options)
    : state_(std::make_unique<TraceState>()) {
  const std::vector<int64_t> ids = model->tokenizer().encode(text);
  state_->family = std::make_shared<Family>(std::move(model), 1);
  state_->start(at::tensor(ids, at::TensorOptions(at::kLong)), options);
}

Trace::Trace(std::unique_ptr<TraceState> state) : state_(std::move(state)) {}
Trace::Trace(Trace&&) noexcept = default;
Trace& Trace::operator=(Trace&&) noexcept = default;
Trace::~Trace() = default;

const Model& Trace::model() const { return *state_->family->model; }
std::shared_ptr<const Model> Trace::model_ptr() const { return state_->family->model; }
int64_t Trace::batch() const { return state_->family->batch; }
int64_t Trace::length() const { return state_->length; }
int64_t Trace::n_segments() const { return static_cast<int64_t>(state_->segments.size()); }
at::Tensor Trace::tokens() { return read("hook_tokens"); }

Trace Trace::fork() const {
  auto other = std::make_unique<TraceState>(*state_);
  other->in_hook = -1;
  return Trace(std::move(other));
}

void Trace::append(const at::Tensor& tokens) { state_->append(tokens); }

void Trace::truncate(int64_t to_length) { state_->truncate(to_length); }

// --- Edits -----------------------------------------------------------------------------------------------------------

void Trace::set(std::string_view name, const at::Tensor& value, const Region& region) {
  state_->require_editable();
  const Node& node = model().graph().node(model().graph().find(name));
  std::shared_ptr<Edit> edit = state_->make_overlay(node, value, region, length());
  const Overlay& overlay = *edit->overlay;
  if (overlay.rows().empty()) return;
  if (overlay.whole_rows() && overlay.rows() == RowSet(0, length())) state_->drop(node.id);
  state_->add(std::move(edit));
}

void Trace::edit(std::string_view name, const std::function<at::Tensor(const at::Tensor& value)>& change) {
  state_->require_editable();
  const Node& node = model().graph().node(model().graph().find(name));
  const at::Tensor present = read(name);
  std::shared_ptr<Edit> edit = state_->make_overlay(node, change(present.clone()), {}, length());
  edit->made_from = present;
  edit->made_from_rows = RowSet(0, length());
  Lineage& under = state_->family->lineages.at(state_->lineage_of(node.id), node.id, length() - 1);
  for (const Influence& influence : under.influences())
    edit->made_under.emplace_back(influence.edit->id, influence.from);
  state_->add(std::move(edit));
}

void Trace::hook(std::string_view name, HookFunction function, const HookOptions& options) {
  state_->add_hook(model().graph().find(name), {std::move(function), options, nullptr});
}

void Trace::run(std::string_view until) {
  TraceState* state = state_.get();
  run_states(std::span<TraceState* const>(&state, 1), model().graph().find(until));
}

void Trace::unset(std::string_view name) {
  state_->require_editable();
  state_->drop(model().graph().find(name));
}

// --- Reading ---------------------------------------------------------------------------------------------------------

at::Tensor Trace::read(std::string_view name, const Positions& positions) {
  Trace* self = this;
  return read_all(std::span<Trace* const>(&self, 1), name, positions).front();
}

at::Tensor Trace::logits_at(int64_t position) { return read("logits", Positions{{position}}).squeeze(1); }

Window Trace::at(std::vector<int64_t> positions) { return {this, state_->absolute(Positions(std::move(positions)))}; }

void Window::set(std::string_view node, const at::Tensor& value) {
  const Graph& graph = trace_->model().graph();
  Region region;
  region.at_axis(static_cast<size_t>(graph.node(graph.find(node)).row_axis), positions_);
  trace_->set(node, value, region);
}

std::vector<at::Tensor> read_all(std::span<Trace* const> traces, std::string_view name, const Positions& positions,
                                 const ReadAllOptions& options) {
  if (traces.empty()) return {};
  std::vector<TraceState*> states;
  for (Trace* trace : traces) states.push_back(trace->state_.get());
  return read_states(states, traces.front()->model().graph().find(name), positions, options);
}

Padded pad_left(const std::vector<at::Tensor>& values, const Node& node, double fill) {
  int64_t longest = 0, most_keys = 0;
  for (const at::Tensor& value : values) {
    longest = std::max(longest, value.size(node.row_axis));
    if (node.has_keys()) most_keys = std::max(most_keys, value.size(3));
  }
  std::vector<int64_t> shape = values.front().sizes().vec();
  shape[0] = static_cast<int64_t>(values.size());
  shape[static_cast<size_t>(node.row_axis)] = longest;
  if (node.has_keys()) shape[3] = most_keys;
  Padded padded{at::full(shape, fill, values.front().options()),
                at::zeros({shape[0], longest}, values.front().options().dtype(at::kBool))};
  for (size_t i = 0; i < values.size(); ++i) {
    const auto sequence = static_cast<int64_t>(i);
    const int64_t size = values[i].size(node.row_axis);
    at::Tensor place = padded.values.narrow(0, sequence, 1).narrow(node.row_axis, longest - size, size);
    if (node.has_keys()) place = place.narrow(3, most_keys - values[i].size(3), values[i].size(3));
    place.copy_(values[i]);
    padded.mask.narrow(0, sequence, 1).narrow(1, longest - size, size).fill_(true);
  }
  return padded;
}

}  // namespace glassformer
