#pragma once
// Internal to trace/: which weights were changed in place since a family last computed with them, and which nodes that
// reaches.

#include <optional>
#include <string>
#include <vector>

#include "glassformer/graph/model.h"

namespace glassformer {

constexpr WeightId kSomeWeight = -1;  // A change that torch did not count, see `Model::weights_changed`.

class WeightWatch {
 public:
  explicit WeightWatch(const Model& model);

  /// The first weight that was changed since the last `update`.
  std::optional<WeightId> changed(const Model& model) const;
  /// Takes note of what was changed; whether anything was. Then a new epoch begins for the nodes that it reaches.
  bool update(const Model& model);

  int64_t epoch() const { return epoch_; }
  /// The last epoch that began for `node`; 0 before any change.
  int64_t epoch_of(NodeId node) const { return reached_[static_cast<size_t>(node)].epoch; }
  /// The weight whose change began it.
  WeightId cause_of(NodeId node) const { return reached_[static_cast<size_t>(node)].cause; }

 private:
  struct Reached {
    int64_t epoch = 0;
    WeightId cause = kSomeWeight;
  };

  std::vector<int64_t> changes_;  // Of each weight, see `Weights::changes`.
  int64_t declared_ = 0;
  int64_t epoch_ = 0;
  std::vector<Reached> reached_;  // For each node.
};

/// "weight 'blocks.0.attn.q.weight'", for messages.
std::string weight_text(const Model& model, WeightId weight);

}  // namespace glassformer
