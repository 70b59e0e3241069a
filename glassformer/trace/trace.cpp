#include "glassformer/trace/trace.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/evaluator.h"

namespace glassformer {

/// The tokens of a trace and of those forks that only follow it. A trace that stands at the end may append in place;
/// one that another has overtaken starts a stem of its own.
struct Stem {
  int64_t length = 0;
};

Trace::Trace(std::shared_ptr<const Model> model, const at::Tensor& tokens, const TraceOptions& options) {
  const int64_t batch = tokens.dim() == 2 ? tokens.size(0) : 1;
  family_ = std::make_shared<Family>(std::move(model), batch);
  start(tokens, options);
}

Trace::Trace(std::shared_ptr<const Model> model, std::string_view text, const TraceOptions& options) {
  const std::vector<int64_t> ids = model->tokenizer().encode(text);
  family_ = std::make_shared<Family>(std::move(model), 1);
  start(at::tensor(ids, at::TensorOptions(at::kLong)), options);
}

Trace::Trace(Trace&&) noexcept = default;

Trace& Trace::operator=(Trace&& other) noexcept {
  std::swap(family_, other.family_);
  std::swap(stem_, other.stem_);
  std::swap(length_, other.length_);
  std::swap(edits_, other.edits_);
  return *this;
}

Trace::~Trace() {
  for (ActiveEdit& active : edits_)
    if (active.edit.use_count() == 1) family_->lineages.forget(*active.edit);
}

const Model& Trace::model() const { return *family_->model; }
std::shared_ptr<const Model> Trace::model_ptr() const { return family_->model; }
int64_t Trace::batch() const { return family_->batch; }
at::Tensor Trace::tokens() { return read("hook_tokens"); }

at::Tensor Trace::as_tokens(const at::Tensor& given) const {
  if (!given.defined() || given.dim() < 1 || given.dim() > 2)
    throw ShapeError(
        str("tokens must be 'pos' or 'batch pos'; found ", given.defined() ? shape_text(given.sizes()) : "nothing"));
  if (!at::isIntegralType(given.scalar_type(), false))
    throw InputError(str("tokens must be integers; found ", c10::toString(given.scalar_type())));
  const at::Tensor tokens = (given.dim() == 1 ? given.unsqueeze(0) : given).to(at::kLong).clone();
  if (tokens.size(0) != family_->batch || tokens.size(0) == 0)
    throw ShapeError(str("expected tokens for ", family_->batch, " sequences; found ", shape_text(given.sizes())));
  check_tokens(tokens);
  return tokens.to(family_->model->weights().device());
}

void Trace::check_tokens(const at::Tensor& tokens) const {
  const ModelConfig& config = family_->model->config();
  if (tokens.size(1) == 0) throw InputError(length_ == 0 ? "the prompt has no tokens" : "no tokens to append");
  const auto lowest = tokens.min().item<int64_t>(), highest = tokens.max().item<int64_t>();
  if (lowest < 0 || highest >= config.d_vocab)
    throw InputError(str("token ", lowest < 0 ? lowest : highest, " is outside the vocabulary of ", config.d_vocab));
  if (length_ + tokens.size(1) > config.n_ctx)
    throw InputError(str("the input has ", length_ + tokens.size(1), " tokens; the model's context is ", config.n_ctx));
}

void Trace::start(const at::Tensor& given, const TraceOptions& options) {
  const at::Tensor tokens = as_tokens(given);
  const int64_t length = tokens.size(1);
  const Graph& graph = family_->graph();
  family_->poll = options.poll;
  family_->keep.what = static_cast<Keep::What>(options.keep);
  if (options.budget_bytes > 0) family_->keep.budget_bytes = options.budget_bytes;
  const auto check = [&](const at::Tensor& tensor, const char* what) {
    if (tensor.sizes() != tokens.sizes())
      throw ShapeError(str(what, ": expected shape ", shape_text(tokens.sizes()), " (batch pos); found ",
                           shape_text(tensor.sizes())));
  };
  give(graph.tokens(), 0, tokens);
  if (options.attention_mask.defined()) {
    check(options.attention_mask, "attention_mask");
    family_->mask_given = true;
    give(graph.attention_mask(), 0,
         options.attention_mask.to(at::TensorOptions(tokens.device()).dtype(at::kBool), false, true));
  }
  if (options.positions.defined()) {
    check(options.positions, "positions");
    const at::Tensor positions = options.positions.to(at::TensorOptions(tokens.device()).dtype(at::kLong), false, true);
    if (positions.min().item<int64_t>() < 0 || positions.max().item<int64_t>() >= graph.n_ctx())
      throw InputError(str("positions must lie from 0 to ", graph.n_ctx() - 1));
    family_->positions_given = true;
    give(graph.positions(), 0, positions);
  }
  length_ = length;
  stem_ = std::make_shared<Stem>(Stem{length});
  update_length_class();
}

void Trace::give(NodeId node, int64_t begin, const at::Tensor& value) {
  std::vector<Influence> tokens_only;
  for (const ActiveEdit& active : edits_)
    if (active.edit->kind == Edit::Kind::kTokens) tokens_only.push_back({active.edit.get(), active.edit->first_row});
  if (node != family_->graph().tokens()) tokens_only.clear();
  Cell& cell = family_->lineages.intern(std::move(tokens_only)).cell(family_->graph().node(node));
  cell.keep = true;
  const RowSet missing = RowSet(begin, begin + value.size(1)).without(cell.valid());  // A fork may have been here.
  for (const Interval& part : missing.intervals())
    cell.insert(RowSet(part.begin, part.end), value.narrow(1, part.begin - begin, part.end - part.begin), true);
}

std::vector<int64_t> Trace::shape_of(const Node& node) const {
  std::vector<int64_t> shape;
  for (const Axis& axis : node.axes)
    shape.push_back(axis.word == "batch" ? family_->batch : axis.size == 0 ? length_ : axis.size);
  return shape;
}

std::vector<int64_t> Trace::absolute(const Positions& positions) const {
  std::vector<int64_t> rows;
  if (!positions) {
    for (int64_t row = 0; row < length_; ++row) rows.push_back(row);
    return rows;
  }
  for (int64_t position : *positions) {
    const int64_t row = position < 0 ? position + length_ : position;
    if (row < 0 || row >= length_)
      throw InputError(str("position ", position, " is outside the trace's ", length_, " positions"));
    rows.push_back(row);
  }
  return rows;
}

// --- Edits -----------------------------------------------------------------------------------------------------------

void Trace::set(std::string_view name, const at::Tensor& value, const Region& region) {
  const Graph& graph = family_->graph();
  const Node& node = graph.node(graph.find(name));
  at::ScalarType dtype = family_->model->weights().dtype();
  if (node.is_input) dtype = node.id == graph.attention_mask() ? at::kBool : at::kLong;
  if (node.name.ends_with("hook_scale") && dtype != at::kDouble) dtype = at::kFloat;
  auto edit = std::make_shared<Edit>();
  edit->node = node.id;
  edit->overlay.emplace(node, shape_of(node), region, value, dtype, family_->model->weights().device());
  if (node.id == graph.tokens() || node.id == graph.positions()) {
    const at::Tensor numbers = value.to(at::kLong);
    const int64_t limit = node.id == graph.tokens() ? family_->model->config().d_vocab : graph.n_ctx();
    if (numbers.numel() > 0 && (numbers.min().item<int64_t>() < 0 || numbers.max().item<int64_t>() >= limit))
      throw InputError(str(node.name, ": expected numbers from 0 to ", limit - 1));
  }
  if (edit->overlay->rows().empty()) return;
  edit->first_row = edit->overlay->rows().first();
  const bool replaces_all = edit->overlay->whole_rows() && edit->overlay->rows() == RowSet(0, length_);
  if (replaces_all) unset(node.name);
  add_edit(std::move(edit));
}

void Trace::add_edit(std::shared_ptr<Edit> edit) {
  edit->id = family_->next_edit++;
  const NodeId node = edit->node;
  const auto place = std::upper_bound(edits_.begin(), edits_.end(), node,
                                      [](NodeId id, const ActiveEdit& other) { return id < other.edit->node; });
  const bool settled = edit->kind != Edit::Kind::kOverlay;
  const int64_t from = edit->first_row;
  edits_.insert(place, {std::move(edit), settled ? std::optional<int64_t>(from) : std::nullopt});
  forget_effects(node);
}

// What edits after `node` change must be found out again.
void Trace::forget_effects(NodeId node) {
  for (ActiveEdit& active : edits_)
    if (active.edit->kind == Edit::Kind::kOverlay && family_->graph().reaches(node, active.edit->node))
      active.from.reset();
}

void Trace::unset(std::string_view name) {
  const NodeId node = family_->graph().find(name);
  for (ActiveEdit& active : edits_)
    if (active.edit->node == node && active.edit->kind == Edit::Kind::kOverlay && active.edit.use_count() == 1)
      family_->lineages.forget(*active.edit);
  std::erase_if(edits_, [node](const ActiveEdit& active) {
    return active.edit->node == node && active.edit->kind == Edit::Kind::kOverlay;
  });
  forget_effects(node);
}

Trace Trace::fork() const {
  Trace other;
  other.family_ = family_;
  other.stem_ = stem_;
  other.length_ = length_;
  other.edits_ = edits_;
  return other;
}

void Trace::append(const at::Tensor& given) {
  const at::Tensor tokens = as_tokens(given);
  const Graph& graph = family_->graph();
  if (stem_->length != length_) {
    auto branch = std::make_shared<Edit>();
    branch->kind = Edit::Kind::kTokens;
    branch->node = graph.tokens();
    branch->first_row = length_;
    add_edit(std::move(branch));
    stem_ = std::make_shared<Stem>();
  }
  give(graph.tokens(), length_, tokens);
  if (family_->mask_given)
    give(graph.attention_mask(), length_,
         at::ones(tokens.sizes(), at::TensorOptions(at::kBool).device(tokens.device())));
  if (family_->positions_given) {
    const at::Tensor last =
        gather({family_.get(), &family_->lineages.root(), graph.positions(), RowSet(length_ - 1, length_)});
    give(graph.positions(), length_, last + at::arange(1, tokens.size(1) + 1, tokens.options()));
  }
  length_ += tokens.size(1);
  stem_->length = length_;
  family_->appended = true;
  update_length_class();
}

// Rotary angles that depend on the length change at every position once the sequence outgrows its class.
void Trace::update_length_class() {
  const Rope* rope = family_->graph().rope();
  if (rope == nullptr) return;
  const int64_t length_now = length_class(*rope, length_), first = length_class(*rope, 1);
  const auto held = std::find_if(edits_.begin(), edits_.end(),
                                 [](const ActiveEdit& active) { return active.edit->kind == Edit::Kind::kLength; });
  const int64_t before = held == edits_.end() ? first : held->edit->length_class;
  if (length_now == before) return;
  if (held != edits_.end()) {
    if (held->edit.use_count() == 1) family_->lineages.forget(*held->edit);
    edits_.erase(held);
  }
  forget_effects(family_->graph().positions());
  if (length_now == first) return;
  std::weak_ptr<Edit>& known = family_->length_edits[length_now];
  std::shared_ptr<Edit> edit = known.lock();
  if (!edit) {
    edit = std::make_shared<Edit>();
    edit->kind = Edit::Kind::kLength;
    edit->node = family_->graph().positions();
    edit->length_class = length_now;
    known = edit;
    add_edit(std::move(edit));
    return;
  }
  const auto place = std::find_if(edits_.begin(), edits_.end(),
                                  [&](const ActiveEdit& active) { return active.edit->node > edit->node; });
  edits_.insert(place, {edit, 0});
}

// --- Which edits reach a node ----------------------------------------------------------------------------------------

Lineage& Trace::lineage_of(NodeId node, const ActiveEdit* before) const {
  std::vector<Influence> influences;
  for (const ActiveEdit& active : edits_) {
    if (&active == before) break;
    const Edit& edit = *active.edit;
    const bool concerns = edit.node == node || family_->graph().reaches(edit.node, node);
    if (concerns && active.from && *active.from != kNothing) influences.push_back({active.edit.get(), *active.from});
  }
  return family_->lineages.intern(std::move(influences));
}

Trace::ActiveEdit* Trace::next_unresolved(NodeId node) {
  for (ActiveEdit& active : edits_) {
    const bool concerns = active.edit->node == node || family_->graph().reaches(active.edit->node, node);
    if (concerns && !active.from) return &active;
  }
  return nullptr;
}

// What an overlay would replace: its node without it, at its rows.
Request Trace::comparison(const ActiveEdit& active) const {
  return {family_.get(), &lineage_of(active.edit->node, &active), active.edit->node, active.edit->overlay->rows()};
}

// Replacing a whole node must not cost computing what it replaces; a value that happens to be there is compared all the
// same.
bool Trace::is_comparable(const ActiveEdit& active, const Request& request) const {
  const Overlay& overlay = *active.edit->overlay;
  if (!(overlay.whole_rows() && overlay.rows().first() == 0)) return true;
  RowSet valid;
  for (const Span& span : family_->lineages.spans(*request.lineage, request.node))
    valid = valid.united(span.lineage->cell(family_->graph().node(request.node)).valid().within(span.begin, INT64_MAX));
  return request.rows.without(valid).empty();
}

void Trace::settle(ActiveEdit& active) {
  const Request request = comparison(active);
  const Node& node = family_->graph().node(request.node);
  if (!is_comparable(active, request)) {
    active.from = active.edit->first_row;
    return;
  }
  const at::Tensor present = gather(request, node.has_keys() ? active.edit->overlay->n_keys() : -1);
  const int64_t row =
      first_difference(active.edit->overlay->applied(present, request.rows), present, request.rows, node.row_axis);
  active.from = row < 0 ? kNothing : row;
}

void Trace::resolve(std::span<Trace* const> traces, NodeId node) {
  for (bool again = true; again;) {
    again = false;
    std::vector<Request> needed;
    for (Trace* trace : traces)
      if (const ActiveEdit* active = trace->next_unresolved(node)) {
        again = true;
        const Request request = trace->comparison(*active);
        if (trace->is_comparable(*active, request)) needed.push_back(request);
      }
    evaluate(needed, {.keep_requested = false, .trim = false});
    for (Trace* trace : traces)
      if (ActiveEdit* active = trace->next_unresolved(node)) trace->settle(*active);
  }
  for (Trace* trace : traces) trace->family_->trim();
}

// --- Reading ---------------------------------------------------------------------------------------------------------

Request Trace::request(NodeId node, const RowSet& rows) const { return {family_.get(), &lineage_of(node), node, rows}; }

// The rows in the order asked for, in memory that nobody else holds.
at::Tensor Trace::collected(NodeId id, const std::vector<int64_t>& rows) const {
  const Node& node = family_->graph().node(id);
  const RowSet set = RowSet::of(rows);
  const at::Tensor value = gather(request(id, set), node.has_keys() ? length_ : -1);
  const std::vector<int64_t> sorted = set.rows();
  if (sorted == rows) return value.clone(at::MemoryFormat::Contiguous);
  std::vector<int64_t> order;
  for (int64_t row : rows) order.push_back(std::lower_bound(sorted.begin(), sorted.end(), row) - sorted.begin());
  return value.index_select(node.row_axis, at::tensor(order, at::TensorOptions(at::kLong)).to(value.device()));
}

at::Tensor Trace::read(std::string_view name, const Positions& positions) {
  Trace* self = this;
  return read_all(std::span<Trace* const>(&self, 1), name, positions).front();
}

at::Tensor Trace::logits_at(int64_t position) { return read("logits", Positions{{position}}).squeeze(1); }

Window Trace::at(std::vector<int64_t> positions) { return {this, absolute(Positions(std::move(positions)))}; }

void Window::set(std::string_view node, const at::Tensor& value) {
  const Graph& graph = trace_->model().graph();
  Region region;
  region.at_axis(static_cast<size_t>(graph.node(graph.find(node)).row_axis), positions_);
  trace_->set(node, value, region);
}

namespace {

// How many traces are taken through all layers together: as many as keep the widest values of a layer within the
// budget.
size_t traces_at_once(const ModelConfig& config, at::ScalarType dtype, int64_t rows_each, bool wide) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const int64_t columns = 8 * config.d_model + 3 * config.d_mlp + (wide ? config.d_vocab : 0);
  const int64_t each = std::max<int64_t>(1, rows_each * columns * static_cast<int64_t>(c10::elementSize(dtype)));
  return static_cast<size_t>(std::max<int64_t>(1, kBytes / each));
}

}  // namespace

std::vector<at::Tensor> read_all(std::span<Trace* const> traces, std::string_view name, const Positions& positions,
                                 const ReadAllOptions& options) {
  std::vector<at::Tensor> values;
  if (traces.empty()) return values;
  const Model& model = traces.front()->model();
  for (const Trace* trace : traces)
    if (&trace->model() != &model) throw InputError("read_all: the traces are of different models");
  const NodeId node = model.graph().find(name);
  const bool lean = traces.size() > 1 && !options.keep_values;
  int64_t longest = 1;
  for (const Trace* trace : traces) longest = std::max(longest, trace->batch() * trace->length());
  const size_t chunk =
      traces_at_once(model.config(), model.weights().dtype(), longest, node >= model.graph().logits() - 1);
  for (size_t begin = 0; begin < traces.size(); begin += chunk) {
    const auto part = traces.subspan(begin, std::min(chunk, traces.size() - begin));
    Trace::resolve(part, node);
    std::vector<Request> requests;
    std::vector<std::vector<int64_t>> rows;
    for (const Trace* trace : part) {
      rows.push_back(trace->absolute(positions));
      if (rows.back().empty()) throw InputError("no positions to read");
      requests.push_back(trace->request(node, RowSet::of(rows.back())));
    }
    evaluate(requests, {.keep_requested = true, .lean = lean});
    for (size_t i = 0; i < part.size(); ++i) values.push_back(part[i]->collected(node, rows[i]));
  }
  return values;
}

Padded pad_left(const std::vector<at::Tensor>& values, const Node& node, double fill) {
  int64_t longest = 0;
  for (const at::Tensor& value : values) longest = std::max(longest, value.size(node.row_axis));
  std::vector<int64_t> shape = values.front().sizes().vec();
  shape[0] = static_cast<int64_t>(values.size());
  shape[static_cast<size_t>(node.row_axis)] = longest;
  if (node.has_keys()) shape[3] = longest;
  Padded padded{at::full(shape, fill, values.front().options()),
                at::zeros({shape[0], longest}, values.front().options().dtype(at::kBool))};
  for (size_t i = 0; i < values.size(); ++i) {
    const auto sequence = static_cast<int64_t>(i);
    const int64_t size = values[i].size(node.row_axis);
    at::Tensor place = padded.values.narrow(0, sequence, 1).narrow(node.row_axis, longest - size, size);
    if (node.has_keys()) place = place.narrow(3, longest - size, size);
    place.copy_(values[i]);
    padded.mask.narrow(0, sequence, 1).narrow(1, longest - size, size).fill_(true);
  }
  return padded;
}

// --- Telling ---------------------------------------------------------------------------------------------------------

std::vector<std::string> Trace::edited() const {
  std::vector<std::string> names;
  for (const ActiveEdit& active : edits_) {
    const std::string& name = family_->graph().node(active.edit->node).name;
    if (active.edit->kind == Edit::Kind::kOverlay && (names.empty() || names.back() != name)) names.push_back(name);
  }
  return names;
}

std::string Trace::state_of(NodeId id) {
  const Node& node = family_->graph().node(id);
  if (next_unresolved(id) != nullptr) return "stale";
  Lineage& lineage = lineage_of(id);
  RowSet valid;
  const std::vector<Span> spans = family_->lineages.spans(lineage, id);
  for (size_t i = 0; i < spans.size(); ++i) {
    const int64_t end = i + 1 < spans.size() ? spans[i + 1].begin : length_;
    valid = valid.united(spans[i].lineage->cell(node).valid().within(spans[i].begin, std::min(end, length_)));
  }
  const int64_t rows = valid.count();
  std::string state = rows == length_ ? "computed"
                      : rows == 0     ? "not computed"
                                      : str("computed at ", rows, " of ", length_, " positions");
  if (lineage.overlay_on(id) != nullptr) state += ", edited";
  return state;
}

std::string Trace::explain(std::string_view name) {
  const Graph& graph = family_->graph();
  const Node& node = graph.node(graph.find(name));
  std::string text =
      str(node.name, "  ", shape_words(node), " ", shape_text(shape_of(node)), "\n  ", state_of(node.id));
  for (const ActiveEdit& active : edits_)
    if (active.edit->node == node.id && active.edit->overlay) text += str("\n  set ", active.edit->overlay->text());
  if (node.is_input) return text + "\n  given";
  Trace* self = this;
  resolve(std::span<Trace* const>(&self, 1), node.id);
  const bool fast = node.fast.run && !lineage_of(node.id).edits_any(node.skipped);
  const Step& step = fast ? node.fast : node.open;
  text += "\n  = " + step.text;
  for (const StepInput& input : step.inputs) {
    const Node& from = graph.node(input.node);
    text += str("\n    ", from.name, input.reach == Reach::kUpToRow ? " (positions up to each)" : "", ": ",
                state_of(from.id));
  }
  for (NodeId skipped : fast ? node.skipped : std::vector<NodeId>{})
    text += "\n  passes over " + graph.node(skipped).name;
  return text;
}

std::vector<Work> Trace::work() const {
  std::vector<Work> work;
  for (const Node& node : family_->graph().nodes())
    if (const int64_t rows = family_->rows_computed[static_cast<size_t>(node.id)]; rows > 0)
      work.push_back({node.name, rows});
  return work;
}

void Trace::reset_work() { std::fill(family_->rows_computed.begin(), family_->rows_computed.end(), 0); }

}  // namespace glassformer
