#pragma once
// Internal to trace/: where the traces of a family begin, and so which nodes they can have.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/graph/graph.h"

namespace glassformer {

/// At the tokens; at another node, whose value is given and above which nothing can be had; or after a past, of whose
/// positions only keys and values are given.
class Begin {
 public:
  static constexpr int64_t kNever = INT64_MAX;

  /// At the tokens, after `n_past` positions whose keys and values are given.
  explicit Begin(std::shared_ptr<const Graph> graph, int64_t n_past = 0);
  /// At `node`. Raises `InputError` where its values can't stand for tokens.
  static Begin at(std::shared_ptr<const Graph> graph, NodeId node);

  const std::shared_ptr<const Graph>& graph() const { return graph_; }
  /// The node that is given, and that appending extends: the tokens where nothing else was said.
  NodeId source() const { return source_; }
  bool at_tokens() const { return source_ == graph_->tokens(); }
  int64_t n_past() const { return n_past_; }
  /// The first position at which there is a value of `node`; `kNever` where there is none.
  int64_t first(NodeId node) const { return first_.empty() ? 0 : first_[static_cast<size_t>(node)]; }
  /// Up to this position the values of `node` are given, so that no edit of an earlier node changes them.
  int64_t given(NodeId node) const { return given_.empty() ? 0 : given_[static_cast<size_t>(node)]; }
  /// Whether an edit of `from` can change `to`: as `Graph::reaches`, by ways that avoid what is given.
  bool reaches(NodeId from, NodeId to) const;
  /// Whether the fast step of a node can be run.
  bool has_fast(const Node& node) const;
  /// `UnavailableError` where there is no value of `node` at all.
  void require(NodeId node) const;
  /// `UnavailableError` for a position before the first one of `node`.
  void require(NodeId node, int64_t position) const;

 private:
  void find_out();
  int64_t first_of(const Step& step) const;

  std::shared_ptr<const Graph> graph_;
  NodeId source_;
  int64_t n_past_;
  std::vector<int64_t> first_, given_;                   // For each node; empty where every node has all positions.
  mutable std::map<NodeId, std::vector<bool>> reached_;  // By edited node, once somebody asked.
};

}  // namespace glassformer
