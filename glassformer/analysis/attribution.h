#pragma once

#include "glassformer/trace/trace.h"

namespace glassformer {

/// A vector that is added to the residual stream, and what it adds to a token's logit.
struct Contribution {
  std::string name;  // "embed", "pos_embed", "3.attn", "3.mlp", "bias"
  std::string kind;  // "embed", "attn", "mlp", "bias"
  int64_t layer = -1;
  at::Tensor logit;  // batch
};

struct AttributionResult {
  std::vector<Contribution> components;  // They sum to `logit`.
  at::Tensor heads;                      // layer head batch: the heads' shares of their block's attention output
  at::Tensor logit;                      // batch: the token's logit (minus the other's), as the model computed it
};

/// Direct logit attribution (Elhage et al., 2021): the logit of `token` (minus that of `versus`, if given) at one
/// position as the sum of what each part writes into the residual stream there, with the final norm's scale held as it
/// is. "bias" is what the final norm's and the unembedding's biases add. Edits of the trace count, but for those of the
/// final norm and after it. Raises `InputError` for a token outside the vocabulary.
AttributionResult direct_logit_attribution(Trace& trace, int64_t token, std::optional<int64_t> versus = std::nullopt,
                                           int64_t position = -1);

}  // namespace glassformer
