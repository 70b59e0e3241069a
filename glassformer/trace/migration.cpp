#include "glassformer/trace/migration.h"

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/joint_hook.h"

namespace glassformer {
namespace {

// Nodes by what tells them apart in all graphs that were made from one another.
std::unordered_map<uint64_t, NodeId> by_origin(const Graph& graph) {
  std::unordered_map<uint64_t, NodeId> found;
  for (const Node& node : graph.nodes()) found.emplace(node.origin, node.id);
  return found;
}

bool same_inputs(const Step& made, const Step& old, const std::vector<NodeId>& twins) {
  return std::equal(made.inputs.begin(), made.inputs.end(), old.inputs.begin(), old.inputs.end(),
                    [&](const StepInput& a, const StepInput& b) {
                      return twins[static_cast<size_t>(a.node)] == b.node && a.reach == b.reach;
                    });
}

bool same_axes(const Node& a, const Node& b) {
  return std::equal(a.axes.begin(), a.axes.end(), b.axes.begin(), b.axes.end(), [](const Axis& one, const Axis& other) {
    return one.word == other.word && one.size == other.size;
  });
}

}  // namespace

std::unique_ptr<TraceState> Migration::moved(const TraceState& trace) {
  const Graph& from = trace.graph();
  const Graph& to = to_->graph();
  if (from.node(from.tokens()).origin != to.node(to.tokens()).origin)
    throw InputError(str("a trace can be forked onto models made from its own by extending it; '", to_->name(),
                         "' was loaded by itself: make a new trace"));
  family_ = trace.family.get();
  match(from);
  edits_.clear();
  auto made = std::make_unique<TraceState>();
  const std::shared_ptr<const Graph> graph(to_, &to);
  Begin begin = trace.begin().at_tokens() ? Begin(graph, trace.begin().n_past())
                                          : Begin::at(graph, place_of(trace.begin().source(), from));
  made->family = std::make_shared<Family>(to_, trace.family->batch, std::move(begin));
  Family& family = *made->family;
  family.keep = trace.family->keep;
  family.mask_given = trace.family->mask_given;
  family.positions_given = trace.family->positions_given;
  family.query_mask = trace.family->query_mask;
  family.lineages.look_ahead(trace.family->lineages.keys_ahead());
  family.poll = trace.family->poll;
  family.next_edit = trace.family->next_edit;  // Edits keep their ids, and so do lineages.
  made->stem = std::make_shared<Stem>(Stem{trace.length});
  made->length = trace.length;
  made->segments = trace.segments;
  made->tracked = trace.tracked;
  move_entries(trace, *made);
  move_values(trace, *made);
  return made;
}

void Migration::match(const Graph& from) {
  const Graph& to = to_->graph();
  const auto old_nodes = by_origin(from);
  twins_.assign(to.nodes().size(), -1);
  for (const Node& node : to.nodes()) {
    NodeId& twin = twins_[static_cast<size_t>(node.id)];
    const auto old = old_nodes.find(node.origin);
    if (old == old_nodes.end()) {
      if (node.stands_for >= 0) twin = twins_[static_cast<size_t>(node.stands_for)];
    } else if (const Node& before = from.node(old->second);
               same_inputs(node.open, before.open, twins_) && same_inputs(node.fast, before.fast, twins_)) {
      twin = before.id;
    }
  }
}

// --- Edits -----------------------------------------------------------------------------------------------------------

NodeId Migration::place_of(NodeId edited, const Graph& from) const {
  const Graph& to = to_->graph();
  const Node& old = from.node(edited);
  for (const Node& node : to.nodes())
    if (node.origin == old.origin) return node.id;
  for (const Node& node : to.nodes())
    if (node.name == old.name && same_axes(node, old)) return node.id;
  throw InputError(str("the trace edits ", old.name, " (", shape_words(old),
                       "), which the model forked onto doesn't have: unset it first"));
}

void Migration::move_entries(const TraceState& trace, TraceState& made) {
  for (const Entry& entry : trace.entries) made.entries.push_back(moved(entry, trace.graph(), made));
  std::stable_sort(made.entries.begin(), made.entries.end(),
                   [](const Entry& a, const Entry& b) { return a.edit->node < b.edit->node; });
}

Entry Migration::moved(const Entry& entry, const Graph& from, TraceState& made) {
  Entry now{moved(entry.edit, from)};
  if (entry.edit->kind == Edit::Kind::kLength) made.family->length_edits[entry.edit->length_class] = now.edit;
  const bool same_values = twins_[static_cast<size_t>(now.edit->node)] == entry.edit->node;
  if (!same_values && entry.edit->changes_values()) return now;  // What it changes must be found out anew.
  now.from = entry.from;
  for (const HookResult& result : entry.results) made.add_result(now, moved(result, from));
  return now;
}

std::shared_ptr<Edit> Migration::moved(const std::shared_ptr<Edit>& edit, const Graph& from) {
  if (!edit) return nullptr;
  std::shared_ptr<Edit>& now = edits_[edit.get()];
  if (now) return now;
  now = std::make_shared<Edit>();
  const std::shared_ptr<Edit> made = now;  // The map may grow below.
  made->id = edit->id;
  made->place = edit->place;
  made->kind = edit->kind;
  made->node = place_of(edit->node, from);
  made->first_row = edit->first_row;
  made->overlay = edit->overlay;
  made->length_class = edit->length_class;
  const bool same_values = twins_[static_cast<size_t>(made->node)] == edit->node;
  if (edit->made_from.defined()) {
    made->made_from = edit->made_from;
    made->made_from_rows = edit->made_from_rows;
    // Under no lineage of the new family where values may differ: then the numbers are compared.
    if (same_values) {
      made->made_under = edit->made_under;
    } else {
      made->made_under = {{0, 0}};
    }
    made->made_after = same_values ? edit->made_after : std::vector<uint64_t>{0};
    // Made from values of weights that have changed since: compared in any case.
    const bool same_weights = family_->weights.epoch_of(edit->node) <= edit->made_epoch;
    made->made_epoch = same_weights ? 0 : -1;
  }
  made->gradient = edit->gradient;
  if (edit->hook) {
    made->hook.emplace(Hook{edit->hook->function, edit->hook->options, nullptr});
    move_hook(*edit->hook, *made->hook, from);
  }
  return made;
}

HookResult Migration::moved(const HookResult& result, const Graph& from) {
  return {result.begin, result.end, moved(result.overlay, from), result.from};
}

void Migration::move_hook(const Hook& hook, Hook& made, const Graph& from) {
  if (hook.joint) {
    std::shared_ptr<JointHook>& joint = joints_[hook.joint.get()];
    if (!joint) {
      joint = std::make_shared<JointHook>();
      joint->size = hook.joint->size;
    }
    made.joint = joint;
    return;  // What it made belongs to all of its traces together; it is called again.
  }
  for (const auto& [hash, memory] : hook.calls)
    made.calls.emplace(hash, HookMemory{memory.input, moved(memory.result, from)});
  for (const std::shared_ptr<Edit>& overlay : hook.made) made.made.push_back(moved(overlay, from));
}

// --- Values ----------------------------------------------------------------------------------------------------------

void Migration::move_values(const TraceState& trace, TraceState& made) {
  Lineages& old = trace.family->lineages;
  for (const Node& node : to_->graph().nodes()) {
    const NodeId twin = twins_[static_cast<size_t>(node.id)];
    if (twin < 0 || trace.begin().first(twin) == Begin::kNever) continue;
    const Node& before = trace.graph().node(twin);
    const RowSet rows(trace.begin().first(twin), trace.length);
    for (Lineage* lineage : {&trace.given_lineage(twin), &trace.lineage_of(twin)})
      for (const Part& part : old.parts(*lineage, before, rows))
        move_cell(part.rows, *part.lineage, before, node, *made.family);
  }
}

void Migration::move_cell(Interval rows, const Lineage& lineage, const Node& before, const Node& node, Family& family) {
  const Cell* cell = lineage.known_cell(before.id);
  if (cell == nullptr) return;
  std::vector<Influence> influences;
  for (const Influence& influence : lineage.influences())
    influences.push_back({edits_.at(influence.edit).get(), influence.from});
  Cell& made = family.lineages.intern(std::move(influences)).cell(node);
  if (cell->kept()) family.shelf.keep(made);
  const RowSet missing = cell->valid().within(rows.begin, rows.end).without(made.valid());
  for (const Interval& part : missing.intervals()) {
    std::vector<at::Tensor> pieces;
    cell->collect(part, pieces);
    int64_t begin = part.begin;
    for (const at::Tensor& piece : pieces) {
      const int64_t end = begin + piece.size(node.row_axis);
      made.insert(RowSet(begin, end), piece);
      begin = end;
    }
  }
  family.shelf.update(made);
}

}  // namespace glassformer
