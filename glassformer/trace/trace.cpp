#include "glassformer/trace/trace.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/migration.h"

namespace glassformer {

Trace::Trace(std::shared_ptr<const Model> model, const at::Tensor& tokens, const TraceOptions& options)
    : Trace(TraceState::started(std::move(model), tokens, options)) {}

Trace::Trace(std::shared_ptr<const Model> model, std::string_view text, const TraceOptions& options)
    : Trace(TraceState::started(
          model, at::tensor(model->tokenizer().encode(text, {options.past.empty()}), at::TensorOptions(at::kLong)),
          options)) {}

Trace Trace::from_node(std::shared_ptr<const Model> model, std::string_view node, const at::Tensor& value,
                       const TraceOptions& options) {
  const NodeId id = model->graph().find(node);
  return Trace(TraceState::started(std::move(model), value, options, id));
}

Trace::Trace(std::unique_ptr<TraceState> state) : state_(std::move(state)) {}
Trace::Trace(Trace&&) noexcept = default;
Trace& Trace::operator=(Trace&&) noexcept = default;
Trace::~Trace() = default;

const Model& Trace::model() const { return *state_->family->model; }
std::shared_ptr<const Model> Trace::model_ptr() const { return state_->family->model; }
int64_t Trace::batch() const { return state_->family->batch; }
int64_t Trace::length() const { return state_->length; }
int64_t Trace::begin() const { return state_->begin().n_past(); }
const std::string& Trace::begin_node() const { return model().graph().node(state_->begin().source()).name; }
int64_t Trace::n_segments() const { return static_cast<int64_t>(state_->segments.size()); }
at::Tensor Trace::tokens() { return read("hook_tokens"); }

Trace Trace::fork() const {
  const InUse in_use(*state_->family);
  state_->collect_live();
  auto other = std::make_unique<TraceState>(*state_);
  other->in_hook = -1;
  other->live.clear();
  other->tape.clear();
  return Trace(std::move(other));
}

Trace Trace::fork(const std::shared_ptr<const Model>& extended) const {
  const InUse in_use(*state_->family);
  if (extended == state_->family->model) return fork();
  state_->follow_weights();
  return Trace(Migration(extended).moved(*state_));
}

Past Trace::past() {
  Past past;
  for (int64_t layer = 0; layer < model().config().n_layers; ++layer) {
    const auto [k, v] = model().graph().keys_and_values(layer);
    past.push_back({read(model().graph().node(k).name), read(model().graph().node(v).name)});
  }
  return past;
}

void Trace::append(const at::Tensor& given) {
  const InUse in_use(*state_->family);
  state_->append(given);
}

void Trace::truncate(int64_t to_length) {
  const InUse in_use(*state_->family);
  state_->truncate(to_length);
}

// --- Edits -----------------------------------------------------------------------------------------------------------

void Trace::set(std::string_view name, const at::Tensor& value, const Region& region) {
  const InUse in_use(*state_->family);
  state_->begin_editing();
  const Node& node = model().graph().node(model().graph().find(name));
  state_->begin().require(node.id);
  if (state_->is_present(value, node, region)) return;
  const int64_t first = state_->begin().first(node.id);
  std::shared_ptr<Edit> edit = state_->make_overlay(node, value, region.from(node, first, length()), length());
  const Overlay& overlay = *edit->overlay;
  if (overlay.rows().empty()) return;
  state_->begin().require(node.id, overlay.rows().first());
  if (overlay.whole_rows() && overlay.rows() == RowSet(first, length())) state_->drop(node.id);
  state_->add(std::move(edit));
}

void Trace::edit(std::string_view name, const std::function<at::Tensor(const at::Tensor& value)>& change) {
  const InUse in_use(*state_->family);
  state_->begin_editing();
  const Node& node = model().graph().node(model().graph().find(name));
  const at::Tensor present = read(name);
  const at::Tensor changed = change(present.clone());
  const std::vector<int64_t> rows = state_->rows_of(node.id, std::nullopt);
  state_->add(state_->make_derived(node, changed, rows, present.detach().clone()));
}

void Trace::hook(std::string_view name, HookFunction function, const HookOptions& options) {
  const InUse in_use(*state_->family);
  state_->add_hook(model().graph().find(name), {std::move(function), options, nullptr});
}

void Trace::hook_gradient(std::string_view name, GradientFunction function) {
  const InUse in_use(*state_->family);
  state_->add_gradient_function(model().graph().find(name), std::move(function));
}

void Trace::require_grad(bool on) {
  const InUse in_use(*state_->family);
  state_->collect_live();
  if (state_->tracked != on) state_->tape.clear();
  state_->tracked = on;
}

bool Trace::requires_grad() const { return state_->tracked; }

at::Tensor Trace::hand_out(std::string_view name, const Positions& positions) {
  const InUse in_use(*state_->family);
  return state_->hand_out(model().graph().find(name), positions);
}

void Trace::collect() {
  const InUse in_use(*state_->family);
  state_->collect_live();
}

void Trace::let_go() {
  const InUse in_use(*state_->family);
  state_->collect_live();
  state_->live.clear();
}

bool Trace::assigned(const at::Tensor& held, const Region& region, const at::Tensor& numbers, const at::Tensor& value) {
  const InUse in_use(*state_->family);
  return state_->assigned(held, region, numbers, value);
}

void Trace::run(std::string_view until) {
  TraceState* state = state_.get();
  run_states(std::span<TraceState* const>(&state, 1), model().graph().find(until));
}

void Trace::unset(std::string_view name) {
  const InUse in_use(*state_->family);
  state_->begin_editing();
  state_->drop(model().graph().find(name));
}

// --- Reading ---------------------------------------------------------------------------------------------------------

at::Tensor Trace::read(std::string_view name, const Positions& positions) {
  Trace* self = this;
  return read_all(std::span<Trace* const>(&self, 1), name, positions).front();
}

at::Tensor Trace::logits_at(int64_t position) { return read("logits", Positions{{position}}).squeeze(1); }

Window Trace::at(const std::vector<int64_t>& positions) { return {this, state_->absolute(positions)}; }

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
