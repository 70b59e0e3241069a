#include "glassformer/analysis/residual_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/base/errors.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

constexpr int64_t kModel = 6;

at::Tensor random(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

// What each head writes, one by one: head batch pos d_model.
at::Tensor heads_one_by_one(const at::Tensor& z, const at::Tensor& W_O) {
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < W_O.size(0); ++head)
    heads.push_back(at::matmul(z.select(-2, head), W_O[head]).unsqueeze(0));
  return at::cat(heads);
}

at::Tensor neurons_one_by_one(const at::Tensor& activations, const at::Tensor& W_out) {
  std::vector<at::Tensor> neurons;
  for (int64_t neuron = 0; neuron < W_out.size(0); ++neuron)
    neurons.push_back((activations.select(-1, neuron).unsqueeze(-1) * W_out[neuron]).unsqueeze(0));
  return at::cat(neurons);
}

at::Tensor normed_one_by_one(const at::Tensor& stack, const FrozenNorm& norm) {
  at::Tensor result = norm.center ? stack - stack.sum(-1, true) / stack.size(-1) : stack;
  result = result / norm.scale;
  return norm.weight.defined() ? result * norm.weight : result;
}

// Two layers of heads and neurons, an embedding, biases and the rest, with the norms that come after sublayers.
struct Written {
  at::Tensor z = random({2, 2, 5, 3, 4}), W_O = random({2, 3, 4, kModel});
  at::Tensor activations = random({2, 2, 5, 7}), W_out = random({2, 7, kModel});
  at::Tensor embed = random({2, 5, kModel}), bias = random({kModel}), whole = random({2, 5, kModel});
  FrozenNorm norm{random({2, 5, 1}).abs() + 0.5, true, {}},
      after{random({2, 5, 1}).abs() + 0.5, true, random({kModel})};

  ResidualParts parts() const {
    ResidualParts parts;
    for (int64_t layer = 0; layer < 2; ++layer) parts.add_heads(head_results(z[layer], W_O[layer]));
    parts.add_heads(head_results(z[1], W_O[1]), after);
    for (int64_t layer = 0; layer < 2; ++layer) parts.add_neurons(activations[layer], W_out[layer]);
    parts.add_neurons(activations[1], W_out[0], after);
    parts.add(embed.unsqueeze(0));
    parts.add_bias({{bias, {}}, {bias, after}});
    parts.add_rest(whole);
    return parts;
  }

  at::Tensor one_by_one() const {
    const at::Tensor everywhere = bias.expand({1, 2, 5, kModel});
    at::Tensor stack =
        at::cat({heads_one_by_one(z[0], W_O[0]), heads_one_by_one(z[1], W_O[1]),
                 normed_one_by_one(heads_one_by_one(z[1], W_O[1]), after), neurons_one_by_one(activations[0], W_out[0]),
                 neurons_one_by_one(activations[1], W_out[1]),
                 normed_one_by_one(neurons_one_by_one(activations[1], W_out[0]), after), embed.unsqueeze(0),
                 everywhere + normed_one_by_one(everywhere, after)});
    return at::cat({stack, (whole - stack.sum(0)).unsqueeze(0)});
  }
};

}  // namespace

TEST_CASE("heads and neurons write products with rows of weights") {
  const Written all;
  const at::Tensor results = head_results(all.z[0], all.W_O[0]);
  CHECK(results.sizes() == at::IntArrayRef{2, 5, 3, kModel});
  CHECK(close(results.movedim(-2, 0), heads_one_by_one(all.z[0], all.W_O[0])));
  CHECK(close(head_results(all.z[0][1][2], all.W_O[0]), results[1][2]));
  const at::Tensor acts = all.activations[0], rows = all.W_out[0], neurons = neurons_one_by_one(acts, rows);
  CHECK(close(neuron_results(acts, rows).movedim(-2, 0), neurons));
  CHECK(close(neuron_results(acts.select(-1, 2), rows[2]), neurons[2]));
  CHECK(close(neuron_results(acts, rows, {}, all.after).movedim(-2, 0), normed_one_by_one(neurons, all.after)));
  const at::Tensor projection = random({kModel, 2});
  CHECK(close(neuron_results(acts, rows, projection).movedim(-2, 0), at::matmul(neurons, projection)));
  CHECK(close(neuron_results(acts.select(-1, 2), rows[2], projection, all.after),
              at::matmul(normed_one_by_one(neurons[2], all.after), projection)));
  CHECK(close(neuron_results(acts, rows, projection.select(1, 0)).movedim(-1, 0),
              at::matmul(neurons, projection.select(1, 0))));
}

TEST_CASE("parts laid out in one piece, with or without a graph, are the parts one by one") {
  Written all;
  const at::Tensor projection = random({kModel, 2});
  for (const bool learned : {false, true}) {
    all.W_out.requires_grad_(learned);
    const at::Tensor expected = all.one_by_one(), norm = normed_one_by_one(expected, all.norm);
    const ResidualParts parts = all.parts();
    const at::Tensor stack = parts.stack();
    CHECK(stack.requires_grad() == learned);
    CHECK(close(stack, expected));
    CHECK(close(parts.stack(all.norm), norm));
    CHECK(close(parts.stack(all.after), normed_one_by_one(expected, all.after)));
    CHECK(close(parts.stack({}, projection), at::matmul(expected, projection)));
    CHECK(close(parts.stack(all.norm, projection), at::matmul(norm, projection)));
    CHECK(close(parts.stack(all.norm, projection.select(1, 1)), at::matmul(norm, projection.select(1, 1))));
    CHECK(close(parts.stack(all.after, projection), at::matmul(normed_one_by_one(expected, all.after), projection)));
    if (!learned) continue;
    const auto gradient = [&](const at::Tensor& made) {
      all.W_out.mutable_grad() = at::Tensor();
      made.pow(3).sum().backward();
      return all.W_out.grad().clone();
    };
    CHECK(close(gradient(parts.stack(all.norm)), gradient(normed_one_by_one(all.one_by_one(), all.norm))));
    const at::NoGradGuard no_grad;
    CHECK(!parts.stack().requires_grad());
  }
}

TEST_CASE("a stack of parts has memory of its own") {
  const at::Tensor embed = random({1, 5, kModel}), before = embed.clone();
  ResidualParts parts;
  parts.add(embed);
  for (const bool learned : {false, true}) {
    embed.requires_grad_(learned);
    parts.stack().detach().zero_();
    CHECK(close(embed, before));
  }
}

TEST_CASE("a stack has the widest dtype of what it is made of") {
  const at::Tensor stack = random({3, 5, kModel}).to(at::kFloat);
  const FrozenNorm norm{random({5, 1}).abs() + 0.5, true, {}};
  for (const bool learned : {false, true}) {
    ResidualParts parts;
    parts.add(stack.clone().requires_grad_(learned));
    CHECK((parts.stack().scalar_type() == at::kFloat));
    CHECK(close(parts.stack(norm), normed_one_by_one(stack, norm)));
    parts.add(random({1, 5, kModel}));
    CHECK((parts.stack().scalar_type() == at::kDouble));
  }
}

TEST_CASE("attributions to logits are products with directions after the norm") {
  const Written all;
  const at::Tensor stack = all.one_by_one();
  const FrozenNorm weighted{all.norm.scale, true, random({kModel})};
  for (const at::Tensor& directions : {random({kModel}), random({5, kModel}), random({2, 5, kModel}),
                                       random({2, 1, kModel}), random({1, 5, kModel})}) {
    CHECK(close(logit_attributions(stack, directions), (stack * directions).sum(-1)));
    const at::Tensor versus = random(directions.sizes());
    for (const FrozenNorm& norm : {all.norm, weighted})
      CHECK(close(logit_attributions(stack, directions, versus, norm),
                  (normed_one_by_one(stack, norm) * (directions - versus)).sum(-1)));
  }
  const at::Tensor one_row = stack.select(1, 0);  // part pos d_model
  CHECK(close(logit_attributions(one_row, random({1, 5, kModel}) * 0 + 1), one_row.sum(-1)));
  CHECK(close(normed(stack, all.norm), normed_one_by_one(stack, all.norm)));
}

TEST_CASE("parts that don't fit are refused") {
  const Written all;
  const at::Tensor stack = random({2, 5, kModel});  // As many parts as the norm's scale has rows.
  CHECK_THROWS_AS(normed(stack, all.norm), ShapeError);
  CHECK_THROWS_AS(normed(random({3, 2, 4, kModel}), all.norm), ShapeError);
  CHECK_THROWS_AS(logit_attributions(stack, random({kModel}), {}, all.norm), ShapeError);
  CHECK_THROWS_AS(logit_attributions(stack, random({2, 5, kModel})), ShapeError);
  CHECK_THROWS_AS(logit_attributions(stack, random({kModel + 1})), ShapeError);
  CHECK_THROWS_AS(head_results(random({5, 2, 4}), random({3, 4, kModel})), ShapeError);
  CHECK_THROWS_AS(head_results(random({5, 3, 5}), random({3, 4, kModel})), ShapeError);
  CHECK_THROWS_AS(head_results(random({5, 3, 4}), random({4, kModel})), ShapeError);
  CHECK_THROWS_AS(neuron_results(random({5, 4}), random({3, kModel})), ShapeError);
  CHECK_THROWS_AS(neuron_results(random({5, 3}), random({3, kModel}), random({kModel + 1})), ShapeError);
  CHECK_THROWS_AS(neuron_results(random({5, 3}), random({3, kModel}), random({1, kModel, 2})), ShapeError);
  ResidualParts parts;
  CHECK_THROWS_AS(parts.stack(), InputError);
  CHECK_THROWS_AS(parts.add_bias({{random({kModel}), {}}}), InputError);
  parts.add(stack);
  CHECK_THROWS_AS(parts.add(random({2, 4, kModel})), ShapeError);
  CHECK_THROWS_AS(parts.add_heads(random({5, 3, kModel + 1})), ShapeError);
  CHECK_THROWS_AS(parts.add_neurons(random({5, 3}), random({4, kModel})), ShapeError);
  CHECK_THROWS_AS(parts.add_bias({{random({1}), {}}}), ShapeError);
  CHECK_THROWS_AS(parts.stack(all.norm), ShapeError);
  ResidualParts one_position;
  one_position.add(all.embed.narrow(1, 0, 1).unsqueeze(0));
  CHECK_THROWS_AS(one_position.stack(all.norm), ShapeError);
  CHECK_THROWS_AS(one_position.stack(all.norm, random({kModel})), ShapeError);
  CHECK_THROWS_AS(parts.stack({}, random({kModel + 1})), ShapeError);
  CHECK(parts.stack().sizes() == stack.sizes());
}
