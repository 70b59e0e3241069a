#pragma once
// Kinds of attention heads, by which earlier tokens they look at.

#include <ATen/core/Tensor.h>

namespace glassformer {

/// `query_pos key_pos`, float32: one where a head that looks at the token before would look, else zero.
at::Tensor previous_token_pattern(int64_t length);
/// The same for a head that looks at earlier places of the same token. Tokens are `pos` or `1 pos`, of one text; throws
/// `ShapeError` for others.
at::Tensor duplicate_token_pattern(const at::Tensor& tokens);
/// The same for an induction head, which looks at what stood behind earlier places of the same token.
at::Tensor induction_pattern(const at::Tensor& tokens);

/// Keys that don't count.
struct KeysLeftOut {
  bool first = false;  // The first token, where heads rest.
  bool own = false;    // The query's own token.
};

/// Which part of the attention of each pattern `… query_pos key_pos` lies where `expected`, `query_pos key_pos`, has
/// ones (weighted by its numbers where it has others): `…`. Throws `ShapeError` where the shapes don't meet.
at::Tensor attention_share(const at::Tensor& patterns, const at::Tensor& expected, const KeysLeftOut& left_out = {});

/// How far each pattern `… query_pos key_pos` is from `expected`: the absolute differences, summed over keys, in the
/// mean over queries: `…`, from 0 to 2 where both are patterns. Throws `ShapeError` where the shapes don't meet, and
/// `InputError` where a pattern differs from the expected one above the diagonal.
at::Tensor attention_distance(const at::Tensor& patterns, const at::Tensor& expected, const KeysLeftOut& left_out = {});

}  // namespace glassformer
