#pragma once
// What attention heads do, as products of their weights (Elhage et al., 2021). Norms' weights are in them only where
// `process_weights` has folded these; biases, positions and the scale of scores are not.

#include "glassformer/analysis/factored_matrix.h"
#include "glassformer/graph/model.h"

namespace glassformer {

/// W_Q W_Kᵀ of each head of a layer: where it looks, `head d_model d_model`: the stream at the query times this times
/// the stream at the key. Keys that heads share are repeated for each. Throws `NameError` for a layer that isn't there.
FactoredMatrix qk_circuits(const Model& model, int64_t layer);

/// W_V W_O of each head of a layer: what it writes for what it sees, `head d_model d_model`: the stream at the key
/// times this is added at the query. Values that heads share are repeated for each. Throws `NameError` too.
FactoredMatrix ov_circuits(const Model& model, int64_t layer);

}  // namespace glassformer
