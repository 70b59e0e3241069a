#include "glassformer/analysis/head_detection.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>

#include "glassformer/base/errors.h"
#include "glassformer/graph/node.h"

namespace glassformer {
namespace {

// One column to the right; what stood in the last is lost.
at::Tensor shifted(const at::Tensor& pattern) {
  return at::constant_pad_nd(pattern.narrow(1, 0, pattern.size(1) - 1), {1, 0});
}

void check_patterns(const at::Tensor& patterns, const at::Tensor& expected) {
  if (patterns.dim() < 2 || patterns.size(-1) != patterns.size(-2))
    throw ShapeError(str("a pattern of shape ", shape_text(patterns.sizes()), "; expected … pos pos"));
  if (expected.sizes() != patterns.sizes().slice(patterns.dim() - 2))
    throw ShapeError(str("an expected pattern of shape ", shape_text(expected.sizes()),
                         "; expected that of the pattern, ", shape_text(patterns.sizes().slice(patterns.dim() - 2))));
}

// Zero where a key doesn't count.
at::Tensor of_those_that_count(const at::Tensor& numbers, const KeysLeftOut& left_out) {
  if (!left_out.first && !left_out.own) return numbers;
  const int64_t size = numbers.size(-1);
  at::Tensor counts = at::ones({size, size}, numbers.options().dtype(at::kBool));
  if (left_out.first) counts.select(1, 0).fill_(false);
  if (left_out.own) counts.fill_diagonal_(false);
  return numbers.masked_fill(counts.logical_not(), 0);
}

}  // namespace

at::Tensor previous_token_pattern(int64_t length) {
  return at::constant_pad_nd(at::eye(length), {0, 0, 1, 0}).narrow(0, 0, length);
}

at::Tensor duplicate_token_pattern(const at::Tensor& tokens) {
  const bool one_text = tokens.dim() == 1 || (tokens.dim() == 2 && tokens.size(0) == 1);
  if (!one_text || tokens.numel() == 0)
    throw ShapeError(str("tokens of shape ", shape_text(tokens.sizes()), "; expected pos or 1 pos, of one text"));
  const at::Tensor text = tokens.flatten();
  return (text.unsqueeze(1) == text.unsqueeze(0)).to(at::kFloat).tril(-1);
}

at::Tensor induction_pattern(const at::Tensor& tokens) { return shifted(duplicate_token_pattern(tokens)); }

at::Tensor attention_share(const at::Tensor& patterns, const at::Tensor& expected, const KeysLeftOut& left_out) {
  check_patterns(patterns, expected);
  const at::Tensor attention = of_those_that_count(patterns, left_out);
  return (attention * expected.to(patterns.device())).sum({-2, -1}) / attention.sum({-2, -1});
}

at::Tensor attention_distance(const at::Tensor& patterns, const at::Tensor& expected, const KeysLeftOut& left_out) {
  check_patterns(patterns, expected);
  const at::Tensor difference = (patterns - expected.to(patterns.device())).abs();
  if (difference.triu(1).any().item<bool>())
    throw InputError("a pattern and the expected one differ above the diagonal, where no query looks; is it causal?");
  return of_those_that_count(difference, left_out).mean({-2, -1}) * difference.size(-1);
}

}  // namespace glassformer
