// Which edits change what, and reading: overlays are compared with what they replace, and hooks called, when a read
// first needs it.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/hash_tensor.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <set>

#include "glassformer/base/errors.h"
#include "glassformer/trace/joint_hook.h"
#include "glassformer/trace/state.h"

namespace glassformer {

RowSet valid_rows(const Request& request) {
  const Node& node = request.family->graph().node(request.node);
  RowSet valid;
  for (const Part& part : request.family->lineages.parts(*request.lineage, node, request.rows))
    if (const Cell* cell = part.lineage->known_cell(node.id); cell != nullptr)
      valid = valid.united(cell->valid().within(part.rows.begin, part.rows.end));
  return valid;
}

namespace {

bool is_there(const Request& request) { return request.rows.without(valid_rows(request)).empty(); }

bool are_there(const std::vector<Request>& requests) { return std::all_of(requests.begin(), requests.end(), is_there); }

// What an overlay would replace: its node without it, at its rows; or what it was made from.
Request comparison(const TraceState& trace, const Entry& entry) {
  const Edit& edit = *entry.edit;
  const RowSet& rows = edit.made_from.defined() ? edit.made_from_rows : edit.overlay->rows();
  return {trace.family.get(), &trace.lineage_of(edit.node, &entry), edit.node, rows};
}

// Replacing a whole node must not cost computing what it replaces; a value that happens to be there is compared all the
// same.
bool is_comparable(const Edit& edit, const Request& request) {
  const Overlay& overlay = *edit.overlay;
  if (edit.made_from.defined()) return true;
  const int64_t first = request.family->begin().first(edit.node);
  return !(overlay.whole_rows() && overlay.rows().first() == first) || is_there(request);
}

// What the numbers depend on that an overlay is compared with.
const Lineage& compared_under(const Request& request, const Edit& edit) {
  const int64_t end = std::max(request.rows.end(), edit.overlay->rows().end());
  return request.family->lineages.at(*request.lineage, request.node, end - 1);
}

bool is_settled(const Entry& entry, const Request& request) {
  return entry.settled >= 0 && entry.settled_under == compared_under(request, *entry.edit).id();
}

// Whether a derived edit was made from what it is compared with now.
bool is_made_under(const Edit& edit, const Request& request) {
  const std::vector<Influence> now = compared_under(request, edit).influences();
  return std::equal(now.begin(), now.end(), edit.made_under.begin(), edit.made_under.end(),
                    [](const Influence& a, const auto& b) { return a.edit->id == b.first && a.from == b.second; });
}

[[noreturn]] void refuse_other_weights(const TraceState& trace, const Edit& edit) {
  const std::string& name = trace.graph().node(edit.node).name;
  const WeightId weight = trace.family->weights.cause_of(edit.node);
  throw OrderError(str(name, edit.overlay->text(), " was changed in place, starting from a value that depends on ",
                       weight_text(*trace.family->model, weight),
                       ", which has changed since: unset it and make the change again, or put it there as a hook, or "
                       "set it to fixed numbers"));
}

// A derived edit of a value that is another one now: nobody can say what is meant.
[[noreturn]] void refuse_derived(const TraceState& trace, const Entry& entry) {
  const Edit& edit = *entry.edit;
  if (trace.family->weights.epoch_of(edit.node) > edit.made_epoch) refuse_other_weights(trace, edit);
  std::string later;
  uint64_t last = 0;
  for (const Entry& other : trace.entries) {
    if (&other == &entry) break;
    if (other.edit->id < last || !trace.family->lineages.concerns(*other.edit, edit.node)) continue;
    last = other.edit->id;
    later = trace.graph().node(other.edit->node).name;
    if (other.edit->overlay) later += other.edit->overlay->text();
  }
  const std::string& name = trace.graph().node(edit.node).name;
  throw OrderError(str(name, edit.overlay->text(), " was changed in place, starting from a value that ",
                       later.empty() ? "an edit dropped since" : "an edit of " + later,
                       " has changed: make the earlier node's edit first, or put the change of ", name,
                       " there as a hook, or set it to fixed numbers (unset drops it)"));
}

}  // namespace

// --- Which edits reach a node ----------------------------------------------------------------------------------------

Lineage& TraceState::lineage_of(NodeId node, const Entry* before) const {
  if (all_known == nullptr) {
    std::vector<Influence> influences;
    for (const Entry& entry : entries) {
      for (const HookResult& result : entry.results)
        if (result.overlay && result.from != kNothing) influences.push_back({result.overlay.get(), result.from});
      if (entry.changes()) influences.push_back({entry.edit.get(), *entry.from});
    }
    all_known = &family->lineages.intern(std::move(influences));
  }
  // Mostly `before` is the last edit of its node, and nothing known counts after it.
  bool bounded = false;
  for (const Entry* entry = before; entry != nullptr && entry != entries.data() + entries.size(); ++entry)
    if (entry->edit->node != before->edit->node) {
      break;
    } else if (entry->changes() || !entry->results.empty()) {
      bounded = true;
    }
  return family->lineages.restricted(*all_known, node, bounded ? before->edit->place : kAfterAll);
}

void TraceState::learn(Edit& edit, int64_t from) {
  if (all_known != nullptr) all_known = &family->lineages.with(*all_known, {&edit, from});
}

Entry* TraceState::next_unresolved(NodeId node) {
  for (Entry& entry : entries)
    if (!entry.from && family->lineages.concerns(*entry.edit, node)) return &entry;
  return nullptr;
}

std::vector<HookSegment> segments_of(const TraceState& trace, NodeId node, const HookOptions& options, int64_t done) {
  const std::vector<int64_t>& wanted = options.segments;
  std::vector<HookSegment> found;
  const auto first = std::lower_bound(trace.segments.begin(), trace.segments.end(), done);
  for (auto i = static_cast<size_t>(first - trace.segments.begin()); i < trace.segments.size(); ++i) {
    const auto number = static_cast<int64_t>(i);
    if (number < options.first_segment) continue;
    if (!wanted.empty() && std::count(wanted.begin(), wanted.end(), number) == 0) continue;
    const int64_t end = i + 1 < trace.segments.size() ? trace.segments[i + 1] : trace.length;
    const int64_t begin = std::max(trace.segments[i], trace.begin().first(node));
    found.push_back({number, begin, end, nullptr, trace.family->weights.epoch_of(node)});
  }
  return found;
}

std::vector<HookSegment> hook_segments(const TraceState& trace, const Entry& entry) {
  const Edit& edit = *entry.edit;
  // Segments get their results in order.
  const int64_t done = entry.results.empty() ? 0 : entry.results.back().end;
  std::vector<HookSegment> segments = segments_of(trace, edit.node, edit.hook->options, done);
  Lineage& input = trace.lineage_of(edit.node, &entry);
  for (HookSegment& segment : segments) segment.input = &trace.family->lineages.at(input, edit.node, segment.end - 1);
  return segments;
}

Request input_of(const TraceState& trace, NodeId node, const HookSegment& segment) {
  return {trace.family.get(), segment.input, node, RowSet(segment.begin, segment.end)};
}

at::Tensor hook_input(const TraceState& trace, const Node& node, const HookSegment& segment) {
  return gather(input_of(trace, node.id, segment), node.has_keys() ? segment.end : -1)
      .clone(at::MemoryFormat::Contiguous);
}

uint64_t hash_of(const at::Tensor& value) {
  return static_cast<uint64_t>(at::hash_tensor(value).view(at::kLong).item<int64_t>());
}

bool is_same(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && first_difference(a, b, RowSet(0, a.size(0)), 0) < 0;
}

at::Tensor call_hook(TraceState& trace, const Node& node, const HookSegment& segment, Hook& hook,
                     const at::Tensor& before) {
  const at::Tensor given = before.clone(at::MemoryFormat::Contiguous);
  at::Tensor after;
  {
    const RunningHook running(trace, node.id, &hook.looked_at);
    after = hook.function(given, HookCall(node, segment.number, segment.begin, segment.end, &trace));
  }
  trace.require_same_weights();
  return after.defined() ? after : given;
}

void remember_call(Hook& hook, uint64_t hash, const at::Tensor& input, const HookResult& result) {
  if (result.overlay) hook.made.push_back(result.overlay);
  if (hook.looked_at.empty()) hook.calls.emplace(hash, HookMemory{input, result});
}

std::shared_ptr<Edit> segment_overlay(const TraceState& trace, const Node& node, const HookSegment& segment,
                                      const at::Tensor& value) {
  Region region;
  region.at_axis(static_cast<size_t>(node.row_axis), RowSet(segment.begin, segment.end).rows());
  return trace.make_overlay(node, value, region, segment.end);
}

HookResult hook_result(const TraceState& trace, const Node& node, const HookSegment& segment, const at::Tensor& before,
                       const at::Tensor& after) {
  const RowSet rows(segment.begin, segment.end);
  // What the hook made may carry a graph, which the overlay keeps; nothing else here is to be recorded.
  std::shared_ptr<Edit> overlay = segment_overlay(trace, node, segment, after);
  const at::NoGradGuard no_grad;
  HookResult result{segment.begin, segment.end, std::move(overlay), kNothing};
  const int64_t row = first_difference(result.overlay->overlay->applied(before, rows), before, rows, node.row_axis);
  if (row >= 0) result.from = row;
  if (row < 0 && !result.overlay->overlay->requires_grad()) {
    result.overlay = nullptr;  // Nothing depends on it.
  } else {
    result.overlay->id = trace.family->next_edit++;
  }
  return result;
}

namespace {

bool is_of(const HookMemory& call, const HookSegment& segment) {
  return call.result.begin == segment.begin && call.result.end == segment.end;
}

// The result of an earlier call whose input depended on the same edits, or null.
const HookResult* remembered(const Hook& hook, const HookSegment& segment) {
  if (!hook.looked_at.empty()) return nullptr;
  const auto known = hook.by_lineage.find(segment.key());
  return known == hook.by_lineage.end() ? nullptr : &known->second;
}

}  // namespace

const HookResult* remembered(const Hook& hook, const HookSegment& segment, const at::Tensor& input, uint64_t hash) {
  if (!hook.looked_at.empty()) return nullptr;
  const auto [begin, end] = hook.calls.equal_range(hash);
  for (auto call = begin; call != end; ++call)
    if (is_of(call->second, segment) && is_same(call->second.input, input)) return &call->second.result;
  return nullptr;
}

std::vector<Request> TraceState::needs(const Entry& entry) const {
  const Edit& edit = *entry.edit;
  if (edit.kind == Edit::Kind::kOverlay) {
    const Request request = comparison(*this, entry);
    if (is_settled(entry, request) || !is_comparable(edit, request)) return {};
    return {request};
  }
  std::vector<Request> requests;
  for (const HookSegment& segment : hook_segments(*this, entry))
    if (remembered(*edit.hook, segment) == nullptr) requests.push_back(input_of(*this, edit.node, segment));
  return requests;
}

namespace {

// Some positions of a node's whole value.
at::Tensor at_rows(const TraceState& trace, const Node& node, const at::Tensor& whole, std::vector<int64_t> rows) {
  for (int64_t& row : rows) row -= trace.begin().first(node.id);
  return whole.index_select(node.row_axis, at::tensor(rows, at::TensorOptions(at::kLong)).to(whole.device()));
}

}  // namespace

void require_same_source(TraceState& trace, const Entry& entry, const at::Tensor& present) {
  const Edit& edit = *entry.edit;
  const bool same_weights = trace.family->weights.epoch_of(edit.node) <= edit.made_epoch;
  if (same_weights && trace.edits_before(edit.node, edit.made_from_rows, &entry) == edit.made_after) return;
  const Node& node = trace.graph().node(edit.node);
  at::Tensor source = at_rows(trace, node, present.detach(), edit.made_from_rows.rows());
  if (node.has_keys()) source = source.narrow(3, 0, edit.made_from.size(3));
  if (is_same(source, edit.made_from)) return;
  const at::NoGradGuard no_grad;  // With and without a graph a value can differ in rounding: look without.
  TraceState* const self = &trace;
  resolve(std::span<TraceState* const>(&self, 1), node.id);
}

void TraceState::settle(Entry& entry) {
  if (entry.edit->kind == Edit::Kind::kHook) {
    settle_hook(entry);
  } else {
    settle_overlay(entry);
  }
}

void TraceState::settle_overlay(Entry& entry) {
  const Request request = comparison(*this, entry);
  const Edit& edit = *entry.edit;
  if (!is_settled(entry, request)) {
    entry.settled = effect_of(entry, request);
    entry.settled_under = compared_under(request, edit).id();
  }
  entry.from = entry.settled;
  if (entry.changes()) learn(*entry.edit, *entry.from);
}

std::vector<uint64_t> TraceState::edits_before(NodeId node, const RowSet& rows, const Entry* before) const {
  std::vector<uint64_t> ids;
  bool hooked = false;
  for (const Entry& entry : entries) {
    if (&entry == before) break;
    if (entry.edit->kind == Edit::Kind::kGradient || !family->lineages.concerns(*entry.edit, node)) continue;
    ids.push_back(entry.edit->id);
    hooked = hooked || entry.edit->hook;
  }
  if (!hooked || rows.empty()) return ids;
  // Hooks see whole segments: in a shorter one they can do something else to the same row.
  const auto next = std::lower_bound(segments.begin(), segments.end(), rows.end());
  ids.push_back(static_cast<uint64_t>(next == segments.end() ? length : *next));
  return ids;
}

int64_t TraceState::effect_of(const Entry& entry, const Request& request) const {
  const at::NoGradGuard no_grad;
  const Edit& edit = *entry.edit;
  const Node& node = graph().node(request.node);
  if (!is_comparable(edit, request)) return edit.first_row;
  at::Tensor present = gather(request, node.has_keys() ? edit.overlay->n_keys() : -1);
  if (edit.made_from.defined()) {
    const bool same_weights = family->weights.epoch_of(node.id) <= edit.made_epoch;
    const bool same_edits =
        edits_before(edit.node, edit.made_from_rows, &entry) == edit.made_after || is_made_under(edit, request);
    const bool same =
        (same_weights && same_edits) || first_difference(edit.made_from, present, request.rows, node.row_axis) < 0;
    if (!same) refuse_derived(*this, entry);
    present = edit.made_from;
  }
  const int64_t row =
      first_difference(edit.overlay->applied(present, request.rows), present, request.rows, node.row_axis);
  return row < 0 ? kNothing : row;
}

void TraceState::settle_hook(Entry& entry) {
  const std::shared_ptr<Edit> edit = entry.edit;
  const Node& node = graph().node(edit->node);
  for (const HookSegment& segment : hook_segments(*this, entry)) {
    if (const HookResult* known = remembered(*edit->hook, segment); known != nullptr) {
      add_result(entry, *known);
      continue;
    }
    const at::Tensor before = hook_input(*this, node, segment);
    const uint64_t hash = hash_of(before);
    if (const HookResult* known = remembered(*edit->hook, segment, before, hash); known != nullptr) {
      const HookResult same = *known;
      edit->hook->by_lineage[segment.key()] = same;
      add_result(entry, same);
      continue;
    }
    const at::Tensor after = call_hook(*this, node, segment, *edit->hook, before);
    const HookResult result = hook_result(*this, node, segment, before, after);
    remember_call(*edit->hook, hash, before, result);
    edit->hook->by_lineage[segment.key()] = result;
    add_result(entry, result);
  }
  entry.from = 0;
}

void TraceState::require_same_weights() const {
  if (const std::optional<WeightId> weight = family->weights.changed(*family->model))
    throw OrderError(str(weight_text(*family->model, *weight),
                         " was changed by a hook or another thread while a trace was being read, which mixes old and "
                         "new: change weights between reads"));
}

void resolve(std::span<TraceState* const> traces, NodeId node) {
  for (;;) {
    std::vector<Request> needed;
    std::vector<TraceState*> waiting, joint;
    for (TraceState* trace : traces)
      if (const Entry* entry = trace->next_unresolved(node)) {
        const bool is_joint = entry->edit->hook && entry->edit->hook->joint;
        (is_joint ? joint : waiting).push_back(trace);
        if (is_joint) continue;
        for (Request& request : trace->needs(*entry)) needed.push_back(std::move(request));
      }
    if (waiting.empty()) {
      if (joint.empty()) break;
      settle_joint_hook(traces, node);
      continue;
    }
    evaluate(needed, {.keep_requested = false, .trim = false});
    // A hook may have read, and so released or resolved, what others wait for: those take another turn.
    for (TraceState* trace : waiting)
      if (Entry* entry = trace->next_unresolved(node)) {
        const bool is_joint = entry->edit->hook && entry->edit->hook->joint;
        if (!is_joint && are_there(trace->needs(*entry))) trace->settle(*entry);
      }
  }
  for (TraceState* trace : traces) trace->family->trim();
}

// --- Reading ---------------------------------------------------------------------------------------------------------

std::vector<int64_t> TraceState::rows_of(NodeId node, const Positions& positions) const {
  begin().require(node);
  if (!positions) return RowSet(begin().first(node), length).rows();
  std::vector<int64_t> rows = absolute(*positions);
  for (int64_t row : rows) begin().require(node, row);
  return rows;
}

std::vector<int64_t> TraceState::absolute(const std::vector<int64_t>& positions) const {
  std::vector<int64_t> rows;
  for (int64_t position : positions) {
    const int64_t row = position < 0 ? position + length : position;
    if (row < 0 || row >= length)
      throw InputError(str("position ", position, " is outside the trace's ", length, " positions"));
    rows.push_back(row);
  }
  return rows;
}

at::Tensor TraceState::collected(NodeId id, const std::vector<int64_t>& rows) const {
  const Node& node = graph().node(id);
  const RowSet set = RowSet::of(rows);
  const at::Tensor value = gather(request(id, set), node.has_keys() ? length : -1);
  const std::vector<int64_t> sorted = set.rows();
  const bool still_grows = node.attended || node.is_input;
  if (sorted == rows) return still_grows ? value.clone(at::MemoryFormat::Contiguous) : lazy_clone(value);
  std::vector<int64_t> order;
  for (int64_t row : rows) order.push_back(std::lower_bound(sorted.begin(), sorted.end(), row) - sorted.begin());
  return value.index_select(node.row_axis, at::tensor(order, at::TensorOptions(at::kLong)).to(value.device()));
}

namespace {

// How many traces are taken through all layers together: as many as keep the widest values of a layer within the
// budget.
size_t traces_at_once(const Model& model, int64_t rows_each, NodeId node) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const ModelConfig& config = model.config();
  const bool wide = node >= model.graph().logits() - 1;
  const int64_t columns =
      8 * config.d_model + 3 * config.d_mlp + model.graph().added_columns() + (wide ? config.d_vocab_out : 0);
  const auto element = static_cast<int64_t>(c10::elementSize(model.weights().dtype()));
  const int64_t each = std::max<int64_t>(1, rows_each * columns * element);
  return static_cast<size_t>(std::max<int64_t>(1, kBytes / each));
}

std::vector<std::unique_ptr<InUse>> enter(std::span<TraceState* const> traces) {
  std::set<Family*> families;
  std::vector<std::unique_ptr<InUse>> in_use;
  for (const TraceState* trace : traces)
    if (families.insert(trace->family.get()).second) in_use.push_back(std::make_unique<InUse>(*trace->family));
  return in_use;
}

void check_reading(std::span<TraceState* const> traces, NodeId node) {
  for (const TraceState* trace : traces) {
    const Model& model = *trace->family->model;
    if (&model != traces.front()->family->model.get()) throw InputError("read_all: the traces are of different models");
    if (trace->in_hook >= 0 && node >= trace->in_hook)
      throw OrderError(str("a hook on ", model.graph().node(trace->in_hook).name,
                           " is running: only earlier nodes of its trace can be read; found ",
                           model.graph().node(node).name));
    trace->begin().require(node);
    if (trace->looked_at != nullptr) trace->looked_at->insert(node);
  }
}

bool has_graph(const TraceState& trace, NodeId node) {
  if (trace.tracked && at::GradMode::is_enabled() && !trace.graph().node(node).is_input) return true;
  const std::vector<bool> graph = nodes_with_graph(trace);
  return !graph.empty() && graph[static_cast<size_t>(node)];
}

at::Tensor recorded(TraceState& trace, NodeId node, const Positions& positions) {
  if (trace.in_hook < 0) trace.tape.renew(trace.begin(), node);
  const Taped& taped = trace.tape.values.at(node);
  at::Tensor value = trace.in_hook < 0 ? taped.given : lazy_clone(taped.used);
  if (value.requires_grad()) value.retain_grad();  // It doesn't where numbers without a graph replace all of it.
  if (!positions) return value;
  return at_rows(trace, trace.graph().node(node), value, trace.rows_of(node, positions));
}

std::vector<at::Tensor> read_plain(std::span<TraceState* const> traces, NodeId node, const Positions& positions,
                                   const ReadAllOptions& options) {
  std::vector<at::Tensor> values;
  const Model& model = *traces.front()->family->model;
  int64_t longest = 1;
  for (const TraceState* trace : traces) longest = std::max(longest, trace->family->batch * trace->length);
  const bool lean = traces.size() > 1 && !options.keep_values;
  const size_t chunk = traces_at_once(model, longest, node);
  for (size_t begin = 0; begin < traces.size(); begin += chunk) {
    const auto part = traces.subspan(begin, std::min(chunk, traces.size() - begin));
    resolve(part, node);
    std::vector<Request> requests;
    std::vector<std::vector<int64_t>> rows;
    for (const TraceState* trace : part) {
      rows.push_back(trace->rows_of(node, positions));
      requests.push_back(trace->request(node, RowSet::of(rows.back())));
    }
    evaluate(requests, {.keep_requested = true, .lean = lean});
    for (size_t i = 0; i < part.size(); ++i) values.push_back(part[i]->collected(node, rows[i]));
  }
  for (const TraceState* trace : traces) trace->require_same_weights();
  return values;
}

struct ByGraph {
  std::vector<TraceState*> plain, with_graph;
};

// The traces for which `node` carries a graph, and the others.
ByGraph by_graph(std::span<TraceState* const> traces, NodeId node) {
  ByGraph found;
  for (TraceState* trace : traces) (has_graph(*trace, node) ? found.with_graph : found.plain).push_back(trace);
  return found;
}

// The same once hooks that are still to be called have been: what they make can turn out to carry a graph.
ByGraph by_graph_with_hooks(std::span<TraceState* const> traces, NodeId node) {
  ByGraph found = by_graph(traces, node);
  const bool may_change =
      at::GradMode::is_enabled() && std::any_of(found.plain.begin(), found.plain.end(), [node](TraceState* trace) {
        return trace->has_hooks() && trace->next_unresolved(node) != nullptr;
      });
  if (!may_change) return found;
  resolve(found.plain, node);
  return by_graph(traces, node);
}

}  // namespace

std::vector<at::Tensor> read_states(std::span<TraceState* const> traces, NodeId node, const Positions& positions,
                                    const ReadAllOptions& options) {
  if (traces.empty()) return {};
  const std::vector<std::unique_ptr<InUse>> in_use = enter(traces);
  check_reading(traces, node);
  if (positions && positions->empty()) throw InputError("no positions to read");
  for (TraceState* trace : traces) trace->follow_weights();
  const auto [plain, with_graph] = by_graph_with_hooks(traces, node);
  if (with_graph.empty()) return read_plain(plain, node, positions, options);
  record(with_graph, node);
  for (const TraceState* trace : with_graph) trace->require_same_weights();
  std::vector<at::Tensor> plain_values, values;
  if (!plain.empty()) plain_values = read_plain(plain, node, positions, options);
  for (TraceState* trace : traces) {
    const auto found = std::find(plain.begin(), plain.end(), trace);
    values.push_back(found == plain.end() ? recorded(*trace, node, positions)
                                          : plain_values[static_cast<size_t>(found - plain.begin())]);
  }
  return values;
}

void run_states(std::span<TraceState* const> traces, NodeId until) {
  const std::vector<std::unique_ptr<InUse>> in_use = enter(traces);
  for (TraceState* trace : traces) trace->follow_weights();
  std::set<NodeId> hooked;
  for (const TraceState* trace : traces)
    for (const Entry& entry : trace->entries)
      if (entry.edit->kind == Edit::Kind::kHook && entry.edit->node <= until) hooked.insert(entry.edit->node);
  for (NodeId node : hooked) {
    const ByGraph found = by_graph_with_hooks(traces, node);
    resolve(found.plain, node);
    record(found.with_graph, node);
  }
  read_states(traces, until, std::nullopt, {.keep_values = true});
}

at::Tensor HookCall::read(std::string_view name) const {
  if (trace_ == nullptr)
    throw UnavailableError(
        str("hook on ", node_.name, ": a hook of several prompts or of a gradient can't read other nodes"));
  std::vector<int64_t> rows;
  for (int64_t row = begin_; row < end_; ++row) rows.push_back(row);
  return read_states(std::span<TraceState* const>(&trace_, 1), trace_->graph().find(name), Positions(rows)).front();
}

}  // namespace glassformer
