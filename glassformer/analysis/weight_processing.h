#pragma once
// Weights rewritten so that they say more and do the same.

#include <memory>

#include "glassformer/graph/model.h"

namespace glassformer {

/// What is rewritten, in this order (Nanda and Bloom, TransformerLens). All but the last leave every prediction as it
/// is, up to rounding; centring the unembedding moves all logits of a position by one number.
struct ProcessOptions {
  /// Norms only divide: their weights go into what follows, whose weights are centred where the norm centres. Nothing
  /// where there are no norms, or none with weights; norms of queries and keys, and those behind attention and MLP,
  /// keep theirs (where ln1 and ln2 stand there, all do).
  bool fold_norms = true;
  /// What writes into the residual stream writes vectors of mean 0. Only where all norms centre; where
  /// they stand behind attention and MLP, embeddings stay as they are.
  bool center_writing_weights = true;
  /// The logits of a position have mean 0. Not where a soft cap follows.
  bool center_unembed = true;
  /// Biases of values go into the bias of attention's output, since a pattern sums to 1. Not with attention sinks or
  /// bounds of values.
  bool fold_value_biases = true;
  /// Queries' and keys' weights become equally large, values' and outputs' orthogonal, by singular values. Not with
  /// rotary positions, shared keys, norms or bounds of queries and keys, or sinks: `UnsupportedError`.
  bool refactor_attention = false;
};

/// A model of its own weights, of the same dtype and on the same device; this one stays as it is. Computed in at least
/// float32. `UnsupportedError` for models with nodes of their own, and where a gated MLP can't take a norm's bias.
std::shared_ptr<const Model> process_weights(const Model& model, const ProcessOptions& options = {});

}  // namespace glassformer
