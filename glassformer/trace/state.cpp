#include "glassformer/trace/state.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

void check_tokens(const at::Tensor& tokens, int64_t length, const ModelConfig& config) {
  if (tokens.size(1) == 0) throw InputError(length == 0 ? "the prompt has no tokens" : "no tokens to append");
  const auto lowest = tokens.min().item<int64_t>(), highest = tokens.max().item<int64_t>();
  if (lowest < 0 || highest >= config.d_vocab)
    throw InputError(str("token ", lowest < 0 ? lowest : highest, " is outside the vocabulary of ", config.d_vocab));
  if (length + tokens.size(1) > config.n_ctx)
    throw InputError(str("the input has ", length + tokens.size(1), " tokens; the model's context is ", config.n_ctx));
}

// Where an edit of `node` comes to stand: after all others of it.
std::vector<Entry>::iterator place_of(std::vector<Entry>& entries, NodeId node) {
  return std::upper_bound(entries.begin(), entries.end(), node,
                          [](NodeId id, const Entry& other) { return id < other.edit->node; });
}

// What a derived edit was made from, as far as it lies before `length`.
void cut_source(Edit& cut, const Edit& edit, const Node& node, int64_t length) {
  if (!edit.made_from.defined()) return;
  cut.made_from_rows = edit.made_from_rows.within(0, length);
  cut.made_from = edit.made_from.narrow(node.row_axis, 0, cut.made_from_rows.count());
  if (node.has_keys()) cut.made_from = cut.made_from.narrow(3, 0, std::min(length, cut.made_from.size(3)));
  for (const auto& influence : edit.made_under)
    if (influence.second < length) cut.made_under.push_back(influence);
}

}  // namespace

TraceState::~TraceState() {
  for (Entry& entry : entries) clear_results(entry);
  for (Entry& entry : entries)
    if (entry.edit.use_count() == 1) family->lineages.forget(*entry.edit);
}

// --- Giving ----------------------------------------------------------------------------------------------------------

at::Tensor TraceState::as_tokens(const at::Tensor& given) const {
  if (!given.defined() || given.dim() < 1 || given.dim() > 2)
    throw ShapeError(
        str("tokens must be 'pos' or 'batch pos'; found ", given.defined() ? shape_text(given.sizes()) : "nothing"));
  if (!at::isIntegralType(given.scalar_type(), false))
    throw InputError(str("tokens must be integers; found ", c10::toString(given.scalar_type())));
  const at::Tensor tokens = (given.dim() == 1 ? given.unsqueeze(0) : given).to(at::kLong).clone();
  if (tokens.size(0) != family->batch || tokens.size(0) == 0)
    throw ShapeError(str("expected tokens for ", family->batch, " sequences; found ", shape_text(given.sizes())));
  check_tokens(tokens, length, family->model->config());
  return tokens.to(family->model->weights().device());
}

void TraceState::start(const at::Tensor& given, const TraceOptions& options) {
  const at::Tensor tokens = as_tokens(given);
  family->poll = options.poll;
  family->keep.what = static_cast<Keep::What>(options.keep);
  if (options.budget_bytes > 0) family->keep.budget_bytes = options.budget_bytes;
  const auto check = [&](const at::Tensor& tensor, const char* what) {
    if (tensor.sizes() != tokens.sizes())
      throw ShapeError(str(what, ": expected shape ", shape_text(tokens.sizes()), " (batch pos); found ",
                           shape_text(tensor.sizes())));
  };
  const auto copied = [&](const at::Tensor& tensor, at::ScalarType dtype) {
    return tensor.to(at::TensorOptions(tokens.device()).dtype(dtype), false, true);
  };
  give(graph().tokens(), 0, tokens);
  if (options.attention_mask.defined()) {
    check(options.attention_mask, "attention_mask");
    family->mask_given = true;
    give(graph().attention_mask(), 0, copied(options.attention_mask, at::kBool));
  }
  if (options.positions.defined()) {
    check(options.positions, "positions");
    const at::Tensor positions = copied(options.positions, at::kLong);
    if (positions.min().item<int64_t>() < 0 || positions.max().item<int64_t>() >= graph().n_ctx())
      throw InputError(str("positions must lie from 0 to ", graph().n_ctx() - 1));
    family->positions_given = true;
    give(graph().positions(), 0, positions);
  }
  length = tokens.size(1);
  segments = {0};
  stem = std::make_shared<Stem>(Stem{length});
  update_length_class();
}

void TraceState::give(NodeId node, int64_t begin, const at::Tensor& value) {
  std::vector<Influence> tokens_only;
  for (const Entry& entry : entries)
    if (entry.edit->kind == Edit::Kind::kTokens) tokens_only.push_back({entry.edit.get(), entry.edit->first_row});
  if (node != graph().tokens()) tokens_only.clear();
  Cell& cell = family->lineages.intern(std::move(tokens_only)).cell(graph().node(node));
  family->shelf.keep(cell);
  const RowSet missing = RowSet(begin, begin + value.size(1)).without(cell.valid());  // A fork may have been here.
  for (const Interval& part : missing.intervals())
    cell.insert(RowSet(part.begin, part.end), value.narrow(1, part.begin - begin, part.end - part.begin), true);
}

void TraceState::append(const at::Tensor& given) {
  require_editable();
  const at::Tensor tokens = as_tokens(given);
  if (stem->length != length) {
    auto branch = std::make_shared<Edit>();
    branch->kind = Edit::Kind::kTokens;
    branch->node = graph().tokens();
    branch->first_row = length;
    add(std::move(branch));
    stem = std::make_shared<Stem>();
  }
  give(graph().tokens(), length, tokens);
  if (family->mask_given)
    give(graph().attention_mask(), length,
         at::ones(tokens.sizes(), at::TensorOptions(at::kBool).device(tokens.device())));
  if (family->positions_given) {
    const at::Tensor last =
        gather({family.get(), &family->lineages.root(), graph().positions(), RowSet(length - 1, length)});
    give(graph().positions(), length, last + at::arange(1, tokens.size(1) + 1, tokens.options()));
  }
  segments.push_back(length);
  length += tokens.size(1);
  stem->length = length;
  for (Entry& entry : entries)
    if (entry.edit->kind == Edit::Kind::kHook) entry.from.reset();  // The new segment is still to be called.
  update_length_class();
}

void TraceState::truncate(int64_t to_length) {
  require_editable();
  if (to_length < 1 || to_length > length)
    throw InputError(
        str("a trace of ", length, " positions can be cut to 1 to ", length, " of them; found ", to_length));
  const int64_t prompt = segments.size() > 1 ? segments[1] : length;
  if (to_length < prompt && (family->mask_given || family->positions_given))
    throw InputError(str("the prompt came with ", family->mask_given ? "an attention_mask" : "positions", " for its ",
                         prompt, " tokens and can't be cut to ", to_length, ": make a new trace"));
  if (to_length == length) return;
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
    entries.insert(place_of(entries, edit->node), {edit, 0, {}});
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

void TraceState::require_editable() const {
  if (in_hook >= 0)
    throw OrderError(str("a hook on ", graph().node(in_hook).name,
                         " is running: its trace can't be edited from inside; return the new value instead"));
}

void TraceState::add(std::shared_ptr<Edit> edit) {
  edit->id = family->next_edit++;
  edit->place = {edit->id, 0};
  const NodeId node = edit->node;
  const int64_t first_row = edit->first_row;
  std::optional<int64_t> from;
  if (!edit->is_put()) {
    from = first_row;
    learn(*edit, first_row);
  }
  entries.insert(place_of(entries, node), {std::move(edit), from, {}});
  forget_effects(node, first_row);
}

void TraceState::add_hook(NodeId node, Hook hook) {
  require_editable();
  auto edit = std::make_shared<Edit>();
  edit->kind = Edit::Kind::kHook;
  edit->node = node;
  edit->hook = std::move(hook);
  add(std::move(edit));
}

void TraceState::forget_effects(NodeId node, int64_t first_row) {
  if (first_row > 0 && may_look_ahead()) first_row = 0;
  for (Entry& entry : entries)
    if (entry.edit->is_put() && graph().reaches(node, entry.edit->node)) forget_effect(entry, first_row);
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

void TraceState::add_result(Entry& entry, HookResult result) {
  if (result.overlay) {
    result.use = result.overlay->users.lock();
    if (!result.use) result.overlay->users = result.use = std::make_shared<char>();
    result.overlay->place = {entry.edit->place.first, result.overlay->id};
    learn(*result.overlay, result.from);
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
  std::erase_if(entries, dropped);
  all_known = nullptr;
  forget_effects(node);
  for (const std::shared_ptr<Edit>& edit : ended) family->lineages.forget(*edit);
}

std::shared_ptr<Edit> TraceState::make_overlay(const Node& node, const at::Tensor& value, const Region& region,
                                               int64_t at_length) const {
  at::ScalarType dtype = family->model->weights().dtype();
  if (node.is_input) dtype = node.id == graph().attention_mask() ? at::kBool : at::kLong;
  if (node.name.ends_with("hook_scale") && dtype != at::kDouble) dtype = at::kFloat;
  auto edit = std::make_shared<Edit>();
  edit->node = node.id;
  edit->overlay.emplace(node, shape_of(node, at_length), region, value, dtype, family->model->weights().device());
  if (node.id == graph().tokens() || node.id == graph().positions()) {
    const at::Tensor numbers = value.to(at::kLong);
    const int64_t limit = node.id == graph().tokens() ? family->model->config().d_vocab : graph().n_ctx();
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
