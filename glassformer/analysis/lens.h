#pragma once

#include <functional>

#include "glassformer/trace/trace.h"

namespace glassformer {

struct LensOptions {
  Positions positions;            // Missing: all.
  int64_t top_k = 1;              // How many of the most likely tokens to give.
  std::optional<int64_t> target;  // A token to follow through the layers.
  bool return_logits = false;     // Give all logits too: `layer batch pos d_vocab`, which can be large.
  std::function<void(int64_t done, int64_t total)> progress;
};

/// The residual stream at each layer, read as if it were the last: `layer batch pos …`. Layer 0 is the embedding, layer
/// l the stream after block l-1; the last row is the model's own output.
struct LensResult {
  std::vector<std::string> layers;              // "embed", "0", "1", …
  at::Tensor top_ids;                           // layer batch pos k
  at::Tensor top_logits;                        // layer batch pos k
  at::Tensor top_probabilities;                 // layer batch pos k
  at::Tensor target_logit, target_probability;  // layer batch pos; undefined without a target
  at::Tensor target_rank;                       // layer batch pos, int64: 0 is the most likely token
  at::Tensor logits;                            // layer batch pos d_vocab; undefined unless asked for
};

/// The logit lens (nostalgebraist, 2020): each layer's residual stream through the final norm and the unembedding.
LensResult logit_lens(Trace& trace, const LensOptions& options = {});

}  // namespace glassformer
