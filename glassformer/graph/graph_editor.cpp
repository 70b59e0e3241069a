#include "glassformer/graph/graph_editor.h"

#include <algorithm>
#include <atomic>
#include <numeric>

namespace glassformer {
namespace {

// Tells nodes apart whatever graphs they are copied into.
uint64_t new_origin() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

GraphEditor::GraphEditor(const Weights& weights) : weights_(weights), graph_(new Graph()) {
  const Axis batch{"batch", 0};
  graph_->tokens_ = add("hook_tokens", {batch, {"pos", 0}}, {});
  graph_->positions_ = add("positions", {batch, {"pos", 0}}, {});
  graph_->attention_mask_ = add("attention_mask", {batch, {"key_pos", 0}}, {});
}

GraphEditor::GraphEditor(const Graph& base, const Weights& weights)
    : weights_(weights), graph_(new Graph(base)), order_(base.nodes().size()) {
  std::iota(order_.begin(), order_.end(), 0);
}

Step GraphEditor::step(StepSpec spec) const {
  Step made{spec.op + "(", std::move(spec.inputs), std::move(spec.weights), spec.by_row, std::move(spec.run)};
  std::erase(made.weights, -1);
  std::string separator;
  for (const StepInput& input : made.inputs) {
    made.text += separator + graph_->node(input.node).name;
    separator = ", ";
  }
  constexpr size_t kMostNamed = 6;  // Of those of many experts the first and the last.
  for (size_t i = 0; i < made.weights.size(); ++i) {
    if (made.weights.size() > kMostNamed && i > 0 && i + 1 < made.weights.size()) {
      if (i == 1) made.text += separator + "…";
      continue;
    }
    made.text += separator + weights_.specs()[static_cast<size_t>(made.weights[i])].name;
    separator = ", ";
  }
  made.text += ")";
  return made;
}

size_t GraphEditor::place_of(NodeId id) const {
  return static_cast<size_t>(std::find(order_.begin(), order_.end(), id) - order_.begin());
}

NodeId GraphEditor::add(std::string name, std::vector<Axis> axes, StepSpec open, NodeId after) {
  Node node;
  node.id = static_cast<NodeId>(graph_->nodes_.size());
  node.origin = new_origin();
  node.name = std::move(name);
  node.axes = std::move(axes);
  node.row_axis = node.has_keys() ? 2 : 1;
  node.is_input = !open.run;
  if (open.run) node.open = step(std::move(open));
  graph_->ids_.emplace(node.name, node.id);
  const size_t place = after == kAtEnd ? order_.size() : place_of(after) + 1;
  order_.insert(order_.begin() + static_cast<std::ptrdiff_t>(place), node.id);
  graph_->nodes_.push_back(std::move(node));
  return graph_->nodes_.back().id;
}

NodeId GraphEditor::last_of_run(NodeId id, NodeId made_since) const {
  size_t place = place_of(id);
  while (place + 1 < order_.size() && order_[place + 1] >= made_since) ++place;
  return order_[place];
}

void GraphEditor::shortcut(NodeId id, std::vector<NodeId> skipped, StepSpec fast) {
  node(id).fast = step(std::move(fast));
  node(id).skipped = std::move(skipped);
}

void GraphEditor::rename(NodeId id, const std::string& name) {
  graph_->ids_.erase(node(id).name);
  node(id).name = name;
  graph_->ids_.emplace(name, id);
}

void GraphEditor::put_between(NodeId below, NodeId above, const std::vector<NodeId>& inner) {
  for (Node& reader : graph_->nodes_) {
    if (reader.id == above || std::count(inner.begin(), inner.end(), reader.id) > 0) continue;
    for (Step* step : {&reader.open, &reader.fast})
      for (StepInput& input : step->inputs)
        if (input.node == below) input.node = above;
    if (std::count(reader.skipped.begin(), reader.skipped.end(), below) == 0) continue;
    reader.skipped.insert(reader.skipped.end(), inner.begin(), inner.end());
    reader.skipped.push_back(above);
  }
  if (graph_->logits_ == below) graph_->logits_ = above;
}

void GraphEditor::set_sizes(int64_t n_ctx, int64_t n_layers) {
  graph_->n_ctx_ = n_ctx;
  graph_->n_layers_ = n_layers;
}

std::shared_ptr<const Graph> GraphEditor::finish() {
  std::vector<NodeId> number(order_.size());
  for (size_t place = 0; place < order_.size(); ++place)
    number[static_cast<size_t>(order_[place])] = static_cast<NodeId>(place);
  const auto renumber = [&](NodeId& id) {
    if (id >= 0) id = number[static_cast<size_t>(id)];
  };
  std::vector<Node> nodes;
  for (NodeId id : order_) nodes.push_back(std::move(node(id)));
  graph_->ids_.clear();
  for (Node& node : nodes) {
    for (NodeId* id : {&node.id, &node.mixed_by, &node.stands_for}) renumber(*id);
    for (Step* step : {&node.open, &node.fast})
      for (StepInput& input : step->inputs) renumber(input.node);
    for (NodeId& id : node.skipped) renumber(id);
    std::sort(node.skipped.begin(), node.skipped.end());
    graph_->ids_.emplace(node.name, node.id);
  }
  graph_->nodes_ = std::move(nodes);
  for (NodeId* id :
       {&graph_->tokens_, &graph_->positions_, &graph_->attention_mask_, &graph_->rotary_, &graph_->logits_})
    renumber(*id);
  graph_->finish();
  return std::move(graph_);
}

}  // namespace glassformer
