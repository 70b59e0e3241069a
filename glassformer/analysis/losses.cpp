#include "glassformer/analysis/losses.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <vector>

#include "glassformer/base/errors.h"
#include "glassformer/graph/node.h"

namespace glassformer {
namespace {

// So many logits are looked at together that what is computed on the way stays in the processor's caches.
constexpr int64_t kTogether = int64_t{1} << 19;

void check_floating(const at::Tensor& logits) {
  if (!logits.is_floating_point())
    throw InputError(str("logits are floating point; found ", c10::toString(logits.scalar_type())));
}

void check_shapes(const at::Tensor& logits, const at::Tensor& tokens) {
  if (logits.dim() < 2 || logits.sizes().slice(0, logits.dim() - 1) != tokens.sizes())
    throw ShapeError(str("logits ", shape_text(logits.sizes()), " and tokens ", shape_text(tokens.sizes()),
                         "; expected … pos d_vocab and … pos"));
  if (tokens.size(-1) == 0) throw ShapeError("tokens have no positions; expected one or more");
}

void check_tokens(const at::Tensor& logits, const at::Tensor& tokens) {
  if (at::isFloatingType(tokens.scalar_type()) || tokens.scalar_type() == at::kBool)
    throw InputError(str("tokens are whole numbers; found ", c10::toString(tokens.scalar_type())));
  if (tokens.numel() == 0) return;
  const int64_t least = tokens.min().item<int64_t>(), most = tokens.max().item<int64_t>();
  if (least < 0 || most >= logits.size(-1))
    throw InputError(
        str("there is no token ", least < 0 ? least : most, "; the logits have 0 to ", logits.size(-1) - 1));
}

// Each tensor but its last (first) position.
at::Tensor here(const at::Tensor& x) { return x.narrow(-1, 0, x.size(-1) - 1); }
at::Tensor next(const at::Tensor& x) { return x.narrow(-1, 1, x.size(-1) - 1); }

at::Tensor both_count(const at::Tensor& tokens, const at::Tensor& mask) {
  if (mask.sizes() != tokens.sizes())
    throw ShapeError(str("attention_mask ", shape_text(mask.sizes()), "; expected the shape of the tokens, ",
                         shape_text(tokens.sizes())));
  return here(mask).logical_and(next(mask)).to(tokens.device());
}

// Rows are split, not cut out one by one: the gradient of a split is one tensor put together.
at::Tensor losses_of_rows(const at::Tensor& logits, const at::Tensor& targets) {
  const int64_t rows = std::max<int64_t>(1, kTogether / std::max<int64_t>(1, logits.size(1)));
  const std::vector<at::Tensor> parts = logits.split(rows), wanted = targets.split(rows);
  std::vector<at::Tensor> losses;
  for (size_t i = 0; i < parts.size(); ++i)
    losses.push_back(-log_probabilities(parts[i]).gather(-1, wanted[i].unsqueeze(-1)).squeeze(-1));
  return at::cat(losses);
}

// In float32 at least.
at::Tensor wide_losses(const at::Tensor& logits, const at::Tensor& given, const std::optional<at::Tensor>& mask) {
  check_shapes(logits, given);
  check_tokens(logits, given);
  const at::Tensor tokens = given.to(logits.device(), at::kLong);
  const at::Tensor targets = at::constant_pad_nd(next(tokens), {0, 1});  // The last position's loss is left out below.
  const at::Tensor rows = losses_of_rows(logits.flatten(0, -2), targets.flatten());
  const at::Tensor losses = here(rows.view(tokens.sizes()));
  return mask ? losses.masked_fill(both_count(tokens, *mask).logical_not(), 0) : losses;
}

}  // namespace

at::Tensor log_probabilities(const at::Tensor& logits) {
  check_floating(logits);
  return at::log_softmax(logits.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat), -1);
}

at::Tensor next_token_losses(const at::Tensor& logits, const at::Tensor& tokens,
                             const std::optional<at::Tensor>& mask) {
  return wide_losses(logits, tokens, mask).to(logits.scalar_type());
}

at::Tensor next_token_loss(const at::Tensor& logits, const at::Tensor& tokens, const std::optional<at::Tensor>& mask) {
  const at::Tensor losses = wide_losses(logits, tokens, mask);
  const at::Tensor mean = mask ? losses.sum() / both_count(tokens, *mask).sum().to(losses.device()) : losses.mean();
  return mean.to(logits.scalar_type());
}

at::Tensor next_token_matches(const at::Tensor& logits, const at::Tensor& tokens) {
  check_shapes(logits, tokens);
  return here(at::argmax(logits, -1)) == next(tokens).to(logits.device());
}

at::Tensor next_token_accuracy(const at::Tensor& logits, const at::Tensor& tokens) {
  return next_token_matches(logits, tokens).to(at::kFloat).mean();
}

}  // namespace glassformer
