#include "glassformer/analysis/losses.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/analysis/head_detection.h"
#include "glassformer/base/errors.h"
#include "glassformer/graph/activations.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

at::Tensor random(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

at::Tensor whole(at::ArrayRef<int64_t> numbers) { return at::tensor(numbers, at::kLong); }

// One by one, from the definition.
at::Tensor slow_losses(const at::Tensor& logits, const at::Tensor& tokens) {
  at::Tensor losses = at::zeros({tokens.size(0), tokens.size(1) - 1}, at::kDouble);
  for (int64_t b = 0; b < losses.size(0); ++b)
    for (int64_t p = 0; p < losses.size(1); ++p) {
      const at::Tensor exponentials = logits[b][p].exp();
      losses[b][p] = -(exponentials[tokens[b][p + 1].item<int64_t>()] / exponentials.sum()).log();
    }
  return losses;
}

}  // namespace

TEST_CASE("losses of next tokens, by their definition") {
  for (const int64_t d_vocab : {1, 7, 200000}) {  // The last: one row at a time.
    const at::Tensor logits = random({2, 4, d_vocab}), tokens = at::randint(d_vocab, {2, 4}, at::kLong);
    const at::Tensor expected = slow_losses(logits, tokens);
    CHECK(close(next_token_losses(logits, tokens), expected));
    CHECK(close(next_token_loss(logits, tokens), expected.mean()));
    const at::Tensor mask = whole({0, 1, 1, 0, 1, 1, 1, 1}).view({2, 4});
    const at::Tensor counts = whole({0, 1, 0, 1, 1, 1}).view({2, 3});
    CHECK(close(next_token_losses(logits, tokens, mask), expected * counts));
    CHECK(close(next_token_loss(logits, tokens, mask), (expected * counts).sum() / 4));
    CHECK(close(log_probabilities(logits).exp(), at::softmax(logits, -1)));
  }
}

TEST_CASE("losses of 16 bits are rounded once") {
  const at::Tensor logits = random({2, 9, 500}).to(at::kBFloat16), tokens = at::randint(500, {2, 9}, at::kLong);
  const at::Tensor expected = next_token_losses(logits.to(at::kDouble), tokens).to(at::kBFloat16);
  CHECK(next_token_losses(logits, tokens).equal(expected));
  CHECK((log_probabilities(logits).scalar_type() == at::kFloat));
}

TEST_CASE("the gradient of a loss is what the softmax lacks") {
  const at::Tensor logits = random({3, 300, 2000}).requires_grad_(), tokens = at::randint(2000, {3, 300}, at::kLong);
  next_token_losses(logits, tokens).sum().backward();
  at::Tensor expected = at::softmax(logits.detach(), -1);
  expected.narrow(1, 0, 299).scatter_add_(-1, tokens.narrow(1, 1, 299).unsqueeze(-1),
                                          at::zeros({3, 299, 1}, at::kDouble) - 1);
  expected.select(1, 299).zero_();
  CHECK(close(logits.grad(), expected));
}

TEST_CASE("accuracies of next tokens") {
  const at::Tensor logits = at::eye(4, at::kDouble).unsqueeze(0), tokens = whole({3, 0, 1, 0}).unsqueeze(0);
  CHECK(next_token_matches(logits, tokens).equal(whole({1, 1, 0}).to(at::kBool).unsqueeze(0)));
  CHECK(next_token_accuracy(logits, tokens).item<float>() == doctest::Approx(2.0 / 3));
}

TEST_CASE("losses that mean nothing are refused") {
  const at::Tensor logits = random({2, 4, 7}), tokens = at::zeros({2, 4}, at::kLong);
  CHECK_THROWS_AS(next_token_loss(logits, tokens.narrow(0, 0, 1)), ShapeError);
  CHECK_THROWS_AS(next_token_loss(logits[0][0], tokens), ShapeError);
  CHECK_THROWS_AS(next_token_loss(logits.narrow(1, 0, 0), tokens.narrow(1, 0, 0)), ShapeError);
  CHECK_THROWS_AS(next_token_loss(logits, tokens, tokens[0]), ShapeError);
  CHECK_THROWS_AS(next_token_loss(logits, tokens + 7), InputError);
  CHECK_THROWS_AS(next_token_loss(logits, tokens - 1), InputError);
  CHECK_THROWS_AS(next_token_loss(logits, tokens.to(at::kDouble)), InputError);
  CHECK_THROWS_AS(next_token_loss(logits.to(at::kLong), tokens), InputError);
  CHECK_THROWS_AS(next_token_accuracy(logits, tokens[0]), ShapeError);
}

TEST_CASE("patterns of kinds of heads") {
  CHECK(previous_token_pattern(3).equal(at::tensor({0, 0, 0, 1, 0, 0, 0, 1, 0}).view({3, 3}).to(at::kFloat)));
  CHECK(previous_token_pattern(1).equal(at::zeros({1, 1})));
  const at::Tensor tokens = whole({5, 6, 5, 5});
  const at::Tensor duplicates = at::tensor({0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0}).view({4, 4});
  CHECK(duplicate_token_pattern(tokens).equal(duplicates.to(at::kFloat)));
  const at::Tensor induction = at::tensor({0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1}).view({4, 4});
  CHECK(induction_pattern(tokens.unsqueeze(0)).equal(induction.to(at::kFloat)));
  CHECK_THROWS_AS(duplicate_token_pattern(tokens.view({2, 2})), ShapeError);
  CHECK_THROWS_AS(induction_pattern(tokens.narrow(0, 0, 0)), ShapeError);
}

TEST_CASE("how well patterns fit the expected one") {
  const at::Tensor expected = at::tensor({1.0, 0.0, 1.0, 0.0}, at::kDouble).view({2, 2});
  const at::Tensor pattern = at::tensor({1.0, 0.0, 0.25, 0.75}, at::kDouble).view({2, 2});
  const at::Tensor both = at::stack({pattern, expected});
  CHECK(close(attention_share(both, expected), at::tensor({0.625, 1.0}, at::kDouble)));
  CHECK(close(attention_distance(both, expected), at::tensor({0.75, 0.0}, at::kDouble)));
  CHECK(close(attention_share(pattern, expected, {.own = true}), at::ones({}, at::kDouble)));
  CHECK(close(attention_share(pattern, expected, {.first = true}), at::zeros({}, at::kDouble)));
  CHECK(attention_distance(pattern, expected, {.own = true}).item<double>() == doctest::Approx(0.375));
  CHECK(close(attention_distance(pattern, expected, {.first = true, .own = true}), at::zeros({}, at::kDouble)));
  CHECK(pattern[0][0].item<double>() == 1);
  CHECK_THROWS_AS(attention_distance(pattern, expected.mT()), InputError);
  CHECK_THROWS_AS(attention_share(pattern, expected.narrow(0, 0, 1)), ShapeError);
  CHECK_THROWS_AS(attention_share(pattern.narrow(0, 0, 1), expected), ShapeError);
}

TEST_CASE("activation functions by name") {
  const at::Tensor x = random({3, 5});
  CHECK(close(activate(x, "relu2"), x.clamp_min(0).square()));
  CHECK(close(activate(x, "solu"), x * at::softmax(x, -1)));
  CHECK(close(soft_cap(x, 2), (x / 2).tanh() * 2));
  CHECK(close(xielu(x.abs(), 0.8, 0.7, 0.5, -1e-6), x.square() * 0.8 + x.abs() * 0.5));
  CHECK(close(xielu(-x.abs(), 0.8, 0.7, 0.5, 0), ((-x.abs()).exp() - 1 + x.abs()) * 0.7 - x.abs() * 0.5));
  const at::Tensor raw_p = random({}), raw_n = random({}), beta = random({}), eps = at::zeros({}, at::kDouble);
  const double alpha_p = (raw_p.exp() + 1).log().item<double>(), alpha_n = (raw_n.exp() + 1).log().item<double>();
  const double b = beta.item<double>();
  CHECK(close(learned_xielu(x, raw_p, raw_n, beta, eps), xielu(x, alpha_p, b + alpha_n, b, 0)));
  CHECK_THROWS_AS(activate(x, "gelu_old"), UnsupportedError);
}
