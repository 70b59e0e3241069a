#pragma once
// The graph of a model: its nodes in computing order, and which reaches which. Built once from the config.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "glassformer/graph/node.h"

namespace glassformer {

class Graph {
 public:
  /// The graph of the universal decoder block with this config's switches.
  static std::shared_ptr<const Graph> build(const ModelConfig& config, const Weights& weights);

  const std::vector<Node>& nodes() const { return nodes_; }
  const Node& node(NodeId id) const { return nodes_[static_cast<size_t>(id)]; }
  /// The node with this name: whole ("blocks.3.attn.hook_z"), without "hook_" ("blocks.3.attn.z"), or short with its
  /// layer ("z3", "resid_pre3"; negative layers count from the end: "resid_pre-1"), with the other names that
  /// TransformerLens takes ("key3", "mlp_post3", "scale3ln1"; "scale" for ln_final's). `NameError` with the nearest
  /// names.
  NodeId find(std::string_view name) const;
  bool has(std::string_view name) const;
  /// "blocks.3.attn.hook_z" -> "z3"; empty for nodes outside the blocks and in parts of their own.
  static std::string short_form(const std::string& name);
  /// Whether an edit of `from` can change `to` (a node does not reach itself).
  bool reaches(NodeId from, NodeId to) const { return reach_[static_cast<size_t>(to)][static_cast<size_t>(from)]; }
  /// The node of mixed values (hook_z) that scores or a pattern weight; -1 for every other node.
  NodeId mixed_by(NodeId weighting) const { return node(weighting).mixed_by; }
  /// The nodes of a layer's keys and values as a past holds them: through their norm and within their bounds, before
  /// rotation. attn.hook_k and attn.hook_v where there is neither.
  std::pair<NodeId, NodeId> keys_and_values(int64_t layer) const;
  /// How many tokens the model takes at most.
  int64_t n_ctx() const { return n_ctx_; }
  int64_t n_layers() const { return n_layers_; }
  const Rope* rope() const { return rope_ ? &*rope_ : nullptr; }

  NodeId tokens() const { return tokens_; }
  NodeId positions() const { return positions_; }
  NodeId attention_mask() const { return attention_mask_; }
  NodeId rotary() const { return rotary_; }  // The first node that depends on the length; -1 without rotary positions.
  NodeId logits() const { return logits_; }  // -1 in a graph of one's own that has none.
  /// The widths of all nodes that users added.
  int64_t added_columns() const { return added_columns_; }

 private:
  friend class GraphEditor;
  Graph() = default;
  void finish();
  std::string resolve(std::string_view name) const;

  std::vector<Node> nodes_;
  std::map<std::string, NodeId, std::less<>> ids_;
  std::vector<std::vector<bool>> reach_;
  NodeId tokens_ = -1, positions_ = -1, attention_mask_ = -1, rotary_ = -1, logits_ = -1;
  int64_t n_ctx_ = 0, n_layers_ = 0, added_columns_ = 0;
  std::optional<Rope> rope_;
};

}  // namespace glassformer
