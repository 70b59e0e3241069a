// What a trace tells of itself: how a node comes about, what is edited, and what was computed.

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/state.h"

namespace glassformer {

std::vector<std::string> Trace::edited() const {
  const InUse in_use(*state_->family);
  state_->collect_live();
  std::vector<std::string> names;
  for (const Entry& entry : state_->entries) {
    const std::string& name = model().graph().node(entry.edit->node).name;
    if (entry.edit->is_put() && (names.empty() || names.back() != name)) names.push_back(name);
  }
  return names;
}

namespace {

std::string state_of(TraceState& trace, NodeId id) {
  if (trace.next_unresolved(id) != nullptr) return "stale";
  Lineage& lineage = trace.lineage_of(id);
  const int64_t first = trace.begin().first(id), length = trace.length - first;
  const int64_t rows = valid_rows({trace.family.get(), &lineage, id, RowSet(first, trace.length)}).count();
  std::string state = rows == length ? "computed"
                      : rows == 0    ? "not computed"
                                     : str("computed at ", rows, " of ", length, " positions");
  if (lineage.edits(id)) state += ", edited";
  return state;
}

}  // namespace

std::string Trace::explain(std::string_view name) {
  const InUse in_use(*state_->family);
  state_->follow_weights();
  const Graph& graph = model().graph();
  const Node& node = graph.node(graph.find(name));
  state_->begin().require(node.id);
  std::vector<int64_t> shape = state_->shape_of(node, length());
  shape[static_cast<size_t>(node.row_axis)] -= state_->begin().first(node.id);
  std::string text =
      str(node.name, "  ", shape_words(node), " ", shape_text(shape), "\n  ", state_of(*state_, node.id));
  for (const Entry& entry : state_->entries)
    if (entry.edit->node == node.id && entry.edit->is_put())
      text += entry.edit->overlay                         ? str("\n  set ", entry.edit->overlay->text())
              : entry.edit->kind == Edit::Kind::kGradient ? "\n  hook on the gradient"
                                                          : "\n  hook";
  if (node.is_input || node.id == state_->begin().source()) return text + "\n  given";
  TraceState* state = state_.get();
  resolve(std::span<TraceState* const>(&state, 1), node.id);
  const Step& step = state->family->step_of(node, state->lineage_of(node.id));
  text += "\n  = " + step.text;
  for (const StepInput& input : step.inputs) {
    const Node& from = graph.node(input.node);
    text += str("\n    ", from.name, input.reach == Reach::kUpToRow ? " (positions up to each)" : "", ": ",
                state_of(*state_, from.id));
  }
  for (NodeId skipped : &step == &node.fast ? node.skipped : std::vector<NodeId>{})
    text += "\n  passes over " + graph.node(skipped).name;
  return text;
}

std::vector<Work> Trace::work() const {
  std::vector<Work> work;
  for (const Node& node : model().graph().nodes())
    if (const int64_t rows = state_->family->rows_computed[static_cast<size_t>(node.id)]; rows > 0)
      work.push_back({node.name, rows});
  return work;
}

void Trace::reset_work() { std::fill(state_->family->rows_computed.begin(), state_->family->rows_computed.end(), 0); }

}  // namespace glassformer
