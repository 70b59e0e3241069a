#pragma once

#include <ATen/core/Tensor.h>

namespace glassformer {

/// What a model expects next, `… d_vocab` each.
struct TokenRanking {
  at::Tensor probabilities;  // At least float32.
  at::Tensor order;          // int64: tokens, the most likely first; of equal ones the smaller number.
  at::Tensor ranks;          // int64: the place of each token in that order, from 0.
};

/// The tokens by how likely `logits` (`… d_vocab`, floating point) make them. `ShapeError` without an axis of tokens,
/// `InputError` for other numbers.
TokenRanking rank_tokens(const at::Tensor& logits);

}  // namespace glassformer
