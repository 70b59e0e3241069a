#pragma once
// How well logits foretell the tokens that come next. Shapes: logits `… pos d_vocab`, tokens and mask `… pos`; the last
// position's logits foretell nothing that is there, so results by token are `… pos-1`.

#include <ATen/core/Tensor.h>

#include <optional>

namespace glassformer {

/// The cross entropy of each next token, in the logits' dtype, computed in float32 at least; where no graph is wanted,
/// without a tensor of the logits' size. Where `mask` is false (or 0) at a token or at the next, the loss is 0.
/// Gradients flow to the logits. Throws `ShapeError` where the shapes don't meet, `InputError` for logits that aren't
/// floating point and for tokens that the logits don't have.
at::Tensor next_token_losses(const at::Tensor& logits, const at::Tensor& tokens,
                             const std::optional<at::Tensor>& mask = {});

/// The mean of these over the tokens that the mask leaves; one number, NaN where it leaves none.
at::Tensor next_token_loss(const at::Tensor& logits, const at::Tensor& tokens,
                           const std::optional<at::Tensor>& mask = {});

/// Whether each next token is the most likely one: bool. Throws `ShapeError` where the shapes don't meet.
at::Tensor next_token_matches(const at::Tensor& logits, const at::Tensor& tokens);

/// Which part of them is: one number in float32, NaN where there is no next token.
at::Tensor next_token_accuracy(const at::Tensor& logits, const at::Tensor& tokens);

/// `… d_vocab`: the logarithms of the probabilities, in float32 at least. Throws `InputError` for logits that aren't
/// floating point.
at::Tensor log_probabilities(const at::Tensor& logits);

}  // namespace glassformer
