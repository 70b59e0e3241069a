#include "glassformer/trace/begin.h"

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {

Begin::Begin(std::shared_ptr<const Graph> graph, int64_t n_past)
    : graph_(std::move(graph)), source_(graph_->tokens()), n_past_(n_past) {
  if (n_past_ > 0) find_out();
}

Begin Begin::at(std::shared_ptr<const Graph> graph, NodeId id) {
  const Node& node = graph->node(id);
  if (node.is_input || node.choices > 0 || node.axes.size() < 2 || node.axes[1].word != "pos")
    throw InputError(str("a trace can begin at an activation with shape 'batch pos …'; ", node.name, " is ",
                         node.is_input      ? "an input"
                         : node.choices > 0 ? "a choice"
                                            : shape_words(node)));
  Begin begin(std::move(graph));
  begin.source_ = id;
  begin.find_out();
  return begin;
}

// The first position at which all inputs of a step are there.
int64_t Begin::first_of(const Step& step) const {
  if (!step.run) return kNever;
  int64_t first = 0;
  for (const StepInput& input : step.inputs) {
    const int64_t of_input = first_[static_cast<size_t>(input.node)];
    first = std::max(first, input.reach == Reach::kUpToRow && of_input > 0 ? kNever : of_input);
  }
  return first;
}

void Begin::find_out() {
  first_.assign(graph_->nodes().size(), 0);
  given_.assign(graph_->nodes().size(), 0);
  if (!at_tokens()) given_[static_cast<size_t>(source_)] = kNever;
  for (int64_t layer = 0; layer < graph_->n_layers() && n_past_ > 0; ++layer) {
    const auto [k, v] = graph_->keys_and_values(layer);
    given_[static_cast<size_t>(k)] = given_[static_cast<size_t>(v)] = n_past_;
  }
  for (const Node& node : graph_->nodes()) {
    const auto id = static_cast<size_t>(node.id);
    int64_t first = std::min(first_of(node.open), first_of(node.fast));
    if (node.is_input) first = node.id != graph_->tokens() ? 0 : at_tokens() ? n_past_ : kNever;
    first_[id] = given_[id] > 0 && first <= given_[id] ? 0 : first;
  }
}

bool Begin::reaches(NodeId from, NodeId to) const {
  if (at_tokens()) return graph_->reaches(from, to);
  std::vector<bool>& reached = reached_[from];
  if (reached.empty()) {
    reached.assign(graph_->nodes().size(), false);
    const auto touches = [&](const Step& step) {
      return first_of(step) != kNever &&
             std::any_of(step.inputs.begin(), step.inputs.end(), [&](const StepInput& input) {
               return input.node == from || reached[static_cast<size_t>(input.node)];
             });
    };
    for (const Node& node : graph_->nodes())
      if (node.id > from && node.id != source_)
        reached[static_cast<size_t>(node.id)] = touches(node.open) || touches(node.fast);
  }
  return reached[static_cast<size_t>(to)];
}

bool Begin::has_fast(const Node& node) const {
  return node.fast.run && (first_.empty() || first_of(node.fast) != kNever);
}

void Begin::require(NodeId node) const {
  if (first(node) != kNever) return;
  const bool above = graph_->reaches(node, source_);
  throw UnavailableError(
      str(graph_->node(node).name, " isn't available: the trace begins at ", graph_->node(source_).name,
          above ? ", which comes after it" : ", and it takes more than that to compute it", "; to have it, begin at ",
          above ? "an earlier node" : "the residual stream", " or trace the tokens"));
}

void Begin::require(NodeId node, int64_t position) const {
  require(node);
  if (position >= first(node)) return;
  throw UnavailableError(str(graph_->node(node).name, " isn't available at position ", position,
                             ": the trace begins at position ", first(node),
                             ", after a past of keys and values; trace the whole prompt to have it"));
}

}  // namespace glassformer
