#pragma once
// Internal to graph/: lays out the nodes of a graph, of the decoder block as of what users add to it.

#include "glassformer/graph/graph.h"
#include "glassformer/graph/steps.h"

namespace glassformer {

class GraphEditor {
 public:
  /// A graph of the inputs alone: tokens, positions, attention mask. `weights` are those of the finished graph's steps,
  /// and must outlive the editor.
  explicit GraphEditor(const Weights& weights);
  /// A copy of `base`, whose weights must be the first of `weights`.
  GraphEditor(const Graph& base, const Weights& weights);

  /// The graph as it stands. Until it is finished, a node's id says when it was made; `is_before` says where it stands.
  Graph& graph() { return *graph_; }
  Node& node(NodeId id) { return graph_->nodes_[static_cast<size_t>(id)]; }
  bool is_before(NodeId first, NodeId second) const { return place_of(first) < place_of(second); }

  struct StepSpec {
    std::string op;  // What `explain` calls it.
    std::vector<StepInput> inputs;
    steps::Run run;
    std::vector<WeightId> weights = {};  // Those that are -1 are left out.
    bool by_row = true;
  };
  static constexpr NodeId kAtEnd = -1;
  /// Adds a node right behind `after`. A node without a `run` is an input.
  NodeId add(std::string name, std::vector<Axis> axes, StepSpec open, NodeId after = kAtEnd);
  /// The last of those nodes behind `id` that were made as `made_since` or later, or `id` itself.
  NodeId last_of_run(NodeId id, NodeId made_since) const;
  /// Gives a node its way past `skipped`.
  void shortcut(NodeId id, std::vector<NodeId> skipped, StepSpec fast);
  /// Frees the node's name for one that takes its place.
  void rename(NodeId id, const std::string& name);
  /// Lets every step that reads `below` read `above` instead, but those of `inner`, which lie between the two. What
  /// passes over `below` passes over all of them.
  void put_between(NodeId below, NodeId above, const std::vector<NodeId>& inner);

  /// What the builder of the decoder block says of the whole.
  void set_sizes(int64_t n_ctx, int64_t n_layers);
  void set_rope(const Rope& rope) { graph_->rope_ = rope; }
  void set_rotary(NodeId id) { graph_->rotary_ = id; }
  void set_logits(NodeId id) { graph_->logits_ = id; }
  void add_columns(int64_t columns) { graph_->added_columns_ += columns; }

  /// Numbers the nodes in computing order. The editor is empty afterwards.
  std::shared_ptr<const Graph> finish();

 private:
  Step step(StepSpec spec) const;
  size_t place_of(NodeId id) const;

  const Weights& weights_;
  std::shared_ptr<Graph> graph_;
  std::vector<NodeId> order_;
};

}  // namespace glassformer
