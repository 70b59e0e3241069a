#include "glassformer/trace/state.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// Where an edit comes to stand: after all others of its node. Other tokens come before these: they are what the others
// change.
std::vector<Entry>::iterator place_of(std::vector<Entry>& entries, const Edit& edit) {
  const auto key = [](const Edit& of) { return std::pair(of.node, of.kind != Edit::Kind::kTokens); };
  return std::upper_bound(entries.begin(), entries.end(), key(edit),
                          [&](const auto& own, const Entry& other) { return own < key(*other.edit); });
}

// What a derived edit was made from, as far as it lies before `length`.
void cut_source(Edit& cut, const Edit& edit, const Node& node, int64_t length) {
  if (!edit.made_from.defined()) return;
  cut.made_from_rows = edit.made_from_rows.within(0, length);
  cut.made_epoch = edit.made_epoch;
  cut.made_after = {0};  // The same edits can say something else now: a hook sees less.
  cut.made_from = edit.made_from.narrow(node.row_axis, 0, cut.made_from_rows.count());
  if (node.has_keys()) cut.made_from = cut.made_from.narrow(3, 0, std::min(length, cut.made_from.size(3)));
  for (const auto& influence : edit.made_under)
    if (influence.second < length) cut.made_under.push_back(influence);
}

}  // namespace

TraceState::~TraceState() {
  if (family) family->end(std::move(entries));
}

// --- Giving ----------------------------------------------------------------------------------------------------------

Lineage& TraceState::given_lineage(NodeId node) const {
  std::vector<Influence> tokens_only;
  for (const Entry& entry : entries)
    if (entry.edit->kind == Edit::Kind::kTokens) tokens_only.push_back({entry.edit.get(), entry.edit->first_row});
  if (node != begin().source()) tokens_only.clear();
  return family->lineages.intern(std::move(tokens_only));
}

void TraceState::give(NodeId node, int64_t first, const at::Tensor& value) {
  Cell& cell = given_lineage(node).cell(graph().node(node));
  family->shelf.keep(cell);
  const RowSet missing = RowSet(first, first + value.size(1)).without(cell.valid());  // A fork may have been here.
  for (const Interval& part : missing.intervals())
    cell.insert(RowSet(part.begin, part.end), value.narrow(1, part.begin - first, part.end - part.begin), true);
}

void TraceState::append(const at::Tensor& given) {
  begin_editing();
  if (family->model->config().bidirectional)
    throw UnsupportedError(
        "a bidirectional model can't go on from what it computed, since earlier positions see the new ones: trace the "
        "longer input anew");
  const at::Tensor value = as_given(given);
  if (stem->length != length) {
    auto branch = std::make_shared<Edit>();
    branch->kind = Edit::Kind::kTokens;
    branch->node = begin().source();
    branch->first_row = length;
    add(std::move(branch));
    stem = std::make_shared<Stem>();
  }
  if (given_with_graph.defined() || value.requires_grad()) given_with_graph = at::cat({given_value(), value}, 1);
  give(begin().source(), length, value.detach());
  const int64_t n_new = value.size(1);
  if (family->mask_given)
    give(graph().attention_mask(), length,
         at::ones({family->batch, n_new}, at::TensorOptions(at::kBool).device(value.device())));
  if (family->positions_given) {
    const at::Tensor last =
        gather({family.get(), &family->lineages.root(), graph().positions(), RowSet(length - 1, length)});
    give(graph().positions(), length, last + at::arange(1, n_new + 1, last.options()));
  }
  detach_live(-1, "tokens were appended");
  tape.clear();
  segments.push_back(length);
  length += n_new;
  stem->length = length;
  for (Entry& entry : entries)
    if (entry.edit->kind == Edit::Kind::kHook) entry.from.reset();  // The new segment is still to be called.
  update_length_class();
}

void TraceState::truncate(int64_t to_length) {
  begin_editing();
  const int64_t least = begin().n_past() + 1;
  if (to_length < least || to_length > length)
    throw InputError(
        str("a trace of ", length, " positions can be cut to ", least, " to ", length, " of them; found ", to_length));
  const int64_t prompt = segments.size() > 1 ? segments[1] : length;
  if (to_length < prompt && (family->mask_given || family->positions_given))
    throw InputError(str("the prompt came with ", family->mask_given ? "an attention_mask" : "positions", " for its ",
                         prompt, " positions and can't be cut to ", to_length, ": make a new trace"));
  if (to_length == length) return;
  detach_live(-1, "the trace was cut");
  tape.clear();
  if (given_with_graph.defined()) given_with_graph = given_with_graph.narrow(1, 0, to_length);
  cut_edits(to_length);
  length = to_length;
  while (segments.back() >= length) segments.pop_back();
  update_length_class();
}

// Edits are shared with forks, so one that reaches further is replaced by what of it remains.
void TraceState::cut_edits(int64_t to_length) {
  std::vector<std::shared_ptr<Edit>> ended;
  std::vector<Entry> kept;
  std::vector<NodeId> changed;
  for (Entry& entry : entries) {
    const Edit& edit = *entry.edit;
    const bool is_overlay = edit.kind == Edit::Kind::kOverlay;
    const bool beyond = is_overlay ? edit.overlay->rows().end() > to_length || edit.overlay->has_keys_beyond(to_length)
                                   : edit.kind == Edit::Kind::kTokens && edit.first_row >= to_length;
    if (entry.edit->kind == Edit::Kind::kHook) {
      clear_results(entry);
      entry.from.reset();
      changed.push_back(edit.node);
    }
    if (!beyond) {
      kept.push_back(std::move(entry));
      continue;
    }
    changed.push_back(edit.node);
    if (is_overlay && edit.first_row < to_length) {
      auto cut = std::make_shared<Edit>();
      cut->node = edit.node;
      cut->first_row = edit.first_row;
      cut->overlay = edit.overlay->before(to_length);
      cut_source(*cut, edit, graph().node(edit.node), to_length);
      cut->id = family->next_edit++;
      cut->place = edit.place;
      kept.push_back({std::move(cut)});
    }
    if (entry.edit.use_count() == 1) ended.push_back(entry.edit);
  }
  entries = std::move(kept);
  all_known = nullptr;
  for (NodeId node : changed) forget_effects(node);
  for (const std::shared_ptr<Edit>& edit : ended) family->lineages.forget(*edit);
}

// Rotary angles that depend on the length change at every position once the sequence outgrows its class.
void TraceState::update_length_class() {
  const Rope* rope = graph().rope();
  if (rope == nullptr) return;
  const int64_t length_now = length_class(*rope, length), first = length_class(*rope, 1);
  const auto held = std::find_if(entries.begin(), entries.end(),
                                 [](const Entry& entry) { return entry.edit->kind == Edit::Kind::kLength; });
  const int64_t before = held == entries.end() ? first : held->edit->length_class;
  if (length_now == before) return;
  if (held != entries.end()) {
    if (held->edit.use_count() == 1) family->lineages.forget(*held->edit);
    entries.erase(held);
    all_known = nullptr;
  }
  forget_effects(graph().positions());
  if (length_now == first) return;
  std::weak_ptr<Edit>& known = family->length_edits[length_now];
  std::shared_ptr<Edit> edit = known.lock();
  if (edit) {
    entries.insert(place_of(entries, *edit), {edit, 0, {}});
    learn(*edit, 0);
    return;
  }
  edit = std::make_shared<Edit>();
  edit->kind = Edit::Kind::kLength;
  edit->node = graph().positions();
  edit->length_class = length_now;
  known = edit;
  add(std::move(edit));
}

// --- Edits -----------------------------------------------------------------------------------------------------------

void TraceState::begin_editing() {
  collect_live();
  live.drop_released();
  if (in_hook >= 0)
    throw OrderError(str("a hook on ", graph().node(in_hook).name,
                         " is running: its trace can't be edited from inside; return the new value instead"));
}

void TraceState::insert(std::shared_ptr<Edit> edit, const at::Tensor& held) {
  edit->id = family->next_edit++;
  edit->place = {edit->id, 0};
  const NodeId node = edit->node;
  const int64_t first_row = edit->first_row;
  std::optional<int64_t> from;
  const bool is_known = !edit->changes_values();
  if (is_known) from = first_row;
  if (is_known && edit->kind != Edit::Kind::kGradient) learn(*edit, first_row);
  detach_live(node, str("an edit of ", graph().node(node).name), held);
  const auto place = place_of(entries, *edit);
  entries.insert(place, {std::move(edit), from, {}});
  forget_effects(node, first_row);
}

size_t TraceState::n_edits(NodeId node) const {
  return static_cast<size_t>(std::count_if(entries.begin(), entries.end(), [node](const Entry& entry) {
    return entry.edit->node == node && entry.edit->is_put();
  }));
}

bool TraceState::has_hooks() const {
  return std::any_of(entries.begin(), entries.end(),
                     [](const Entry& entry) { return entry.edit->kind == Edit::Kind::kHook; });
}

void TraceState::add_gradient_function(NodeId node, GradientFunction function) {
  begin_editing();
  auto edit = std::make_shared<Edit>();
  edit->kind = Edit::Kind::kGradient;
  edit->node = node;
  edit->gradient = std::move(function);
  add(std::move(edit));
}

void TraceState::add_hook(NodeId node, Hook hook) {
  begin_editing();
  begin().require(node);
  auto edit = std::make_shared<Edit>();
  edit->kind = Edit::Kind::kHook;
  edit->node = node;
  edit->hook = std::move(hook);
  add(std::move(edit));
}

void TraceState::forget_effects(NodeId node, int64_t first_row) {
  tape.forget_after(begin(), node);
  if (first_row > 0 && (first_row < family->lineages.keys_ahead() || may_look_ahead())) first_row = 0;
  for (Entry& entry : entries) {
    if (entry.edit->changes_values() && begin().reaches(node, entry.edit->node)) forget_effect(entry, first_row);
    if (!entry.edit->hook || entry.edit->node <= node) continue;
    const std::set<NodeId>& read = entry.edit->hook->looked_at;
    if (std::any_of(read.begin(), read.end(), [&](NodeId id) { return id == node || begin().reaches(node, id); })) {
      forget_effect(entry, first_row);
      tape.strip(entry.edit->node);
      forget_effects(entry.edit->node, first_row);
    }
  }
}

void TraceState::forget_effect(Entry& entry, int64_t first_row) {
  if (entry.edit->kind == Edit::Kind::kHook) {
    entry.from.reset();
    clear_results(entry, first_row);
    return;
  }
  const bool is_before = entry.edit->overlay->rows().end() <= first_row;
  if (is_before && (entry.edit->made_from_rows.empty() || entry.edit->made_from_rows.end() <= first_row)) return;
  if (entry.changes()) all_known = nullptr;
  entry.from.reset();
}

bool TraceState::may_look_ahead() const {
  const auto looks = [](const std::shared_ptr<Edit>& edit) {
    return edit && edit->overlay && edit->overlay->sees_later_keys();
  };
  return std::any_of(entries.begin(), entries.end(), [&](const Entry& entry) {
    const bool is_waiting = entry.edit->hook && !entry.from && graph().node(entry.edit->node).is_weighting();
    return is_waiting || looks(entry.edit) ||
           std::any_of(entry.results.begin(), entry.results.end(),
                       [&](const HookResult& result) { return looks(result.overlay); });
  });
}

void TraceState::follow_weights() {
  collect_live();
  family->follow_weights();
  if (weight_epoch == family->weights.epoch()) return;
  const auto is_reached = [this](NodeId node) { return family->weights.epoch_of(node) > weight_epoch; };
  std::erase_if(tape.values, [&](const auto& taped) { return is_reached(taped.first); });
  for (LiveValue& value : live)
    if (is_reached(value.node) && value.detached.empty()) value.detached = "a weight changed";
  all_known = nullptr;
  for (Entry& entry : entries) {
    int64_t epoch = family->weights.epoch_of(entry.edit->node);
    if (entry.edit->hook)
      for (NodeId read : entry.edit->hook->looked_at) epoch = std::max(epoch, family->weights.epoch_of(read));
    if (!entry.edit->changes_values() || epoch <= weight_epoch) continue;
    entry.from.reset();
    entry.settled = -1;
    clear_results(entry);
    if (entry.edit->hook)
      std::erase_if(entry.edit->hook->by_lineage,
                    [epoch](const auto& known) { return std::get<0>(known.first) < epoch; });
  }
  weight_epoch = family->weights.epoch();
}

void TraceState::add_result(Entry& entry, HookResult result) {
  if (result.overlay) {
    result.use = result.overlay->users.lock();
    if (!result.use) result.overlay->users = result.use = std::make_shared<char>();
    result.overlay->place = {entry.edit->place.first, result.overlay->id};
    if (result.from != kNothing) learn(*result.overlay, result.from);
  }
  entry.results.push_back(std::move(result));
}

void TraceState::clear_results(Entry& entry, int64_t from) {
  const auto first = std::find_if(entry.results.begin(), entry.results.end(),
                                  [from](const HookResult& result) { return result.end > from; });
  if (first == entry.results.end()) return;
  const std::vector<HookResult> dropped(std::make_move_iterator(first), std::make_move_iterator(entry.results.end()));
  entry.results.erase(first, entry.results.end());
  all_known = nullptr;
  // The hook remembers what it made; the values that depend on it may go until a trace has it again.
  for (const HookResult& result : dropped)
    if (result.overlay && result.use.use_count() == 1) family->lineages.empty(*result.overlay);
}

void TraceState::drop(NodeId node) {
  const auto dropped = [node](const Entry& entry) { return entry.edit->node == node && entry.edit->is_put(); };
  std::vector<std::shared_ptr<Edit>> ended;
  for (const Entry& entry : entries)
    if (dropped(entry) && entry.edit.use_count() == 1) ended.push_back(entry.edit);
  if (std::erase_if(entries, dropped) > 0) detach_live(node, "edits of " + graph().node(node).name + " were dropped");
  tape.strip(node);
  all_known = nullptr;
  forget_effects(node);
  for (const std::shared_ptr<Edit>& edit : ended) family->lineages.forget(*edit);
}

at::ScalarType TraceState::dtype_of(const Node& node) const {
  if (node.is_input) return node.id == graph().attention_mask() ? at::kBool : at::kLong;
  if (node.choices > 0) return at::kLong;
  if (node.is_single) return at::kFloat;
  const at::ScalarType dtype = family->model->weights().dtype();
  return node.is_wide && dtype != at::kDouble ? at::kFloat : dtype;
}

std::shared_ptr<Edit> TraceState::make_overlay(const Node& node, const at::Tensor& value, const Region& region,
                                               int64_t at_length) const {
  auto edit = std::make_shared<Edit>();
  edit->node = node.id;
  edit->overlay.emplace(node, shape_of(node, at_length), region, value, dtype_of(node),
                        family->model->weights().device());
  const int64_t limit = node.id == graph().tokens()      ? family->model->config().d_vocab
                        : node.id == graph().positions() ? graph().n_ctx()
                                                         : node.choices;
  if (limit > 0) {
    const at::Tensor numbers = value.to(at::kLong);
    if (numbers.numel() > 0 && (numbers.min().item<int64_t>() < 0 || numbers.max().item<int64_t>() >= limit))
      throw InputError(str(node.name, ": expected numbers from 0 to ", limit - 1));
  }
  if (!edit->overlay->rows().empty()) edit->first_row = edit->overlay->rows().first();
  return edit;
}

std::vector<int64_t> TraceState::shape_of(const Node& node, int64_t at_length) const {
  std::vector<int64_t> shape;
  for (const Axis& axis : node.axes)
    shape.push_back(axis.word == "batch" ? family->batch : axis.size == 0 ? at_length : axis.size);
  return shape;
}

}  // namespace glassformer
