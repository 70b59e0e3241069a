#include "glassformer/analysis/factored_matrix.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/diag_embed.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/real.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/base/errors.h"
#include "tests/tiny_model.h"

using namespace glassformer;
using at::indexing::Ellipsis, at::indexing::Slice, at::indexing::TensorIndex;

namespace {

at::Tensor random(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

FactoredMatrix some_matrix() { return {random({2, 3, 6, 4}), random({3, 4, 5})}; }

at::Tensor part(const FactoredMatrix& matrix, std::initializer_list<TensorIndex> entries) {
  return matrix.index(entries).product();
}

}  // namespace

TEST_CASE("a factored matrix multiplies as its product does") {
  const FactoredMatrix matrix = some_matrix();
  const at::Tensor whole = at::matmul(matrix.a(), matrix.b());
  CHECK(matrix.shape() == std::vector<int64_t>{2, 3, 6, 5});
  CHECK(matrix.a().sizes() == at::IntArrayRef{2, 3, 6, 4});
  CHECK(matrix.b().sizes() == at::IntArrayRef{2, 3, 4, 5});
  CHECK(close(matrix.product(), whole));
  CHECK(close(matrix.transposed().product(), whole.mT()));
  CHECK(close(matrix.scaled(-3).product(), whole * -3));
  CHECK(close(matrix.scaled(at::arange(3, 4, at::kDouble)).product(), whole * 3));
  for (const int64_t size : {2, 9}) {
    const at::Tensor right = random({5, size}), left = random({3, size, 6});
    CHECK(close(matrix.times(right).product(), at::matmul(whole, right)));
    CHECK(close(matrix.after(left).product(), at::matmul(left, whole)));
  }
  CHECK(matrix.times(random({5, 9})).middle() == 4);
  CHECK(matrix.transposed().times(matrix).middle() == 4);
  CHECK(FactoredMatrix(random({6, 4}), random({4, 3})).times(random({3, 9})).middle() == 3);
  CHECK(FactoredMatrix(random({3, 4}), random({4, 6})).after(random({9, 3})).middle() == 3);
  CHECK(close(matrix.transposed().times(matrix).product(), at::matmul(whole.mT(), whole)));
  const at::Tensor column = random({5}), row = random({6});
  CHECK(close(matrix.times_vector(column), at::matmul(whole, column)));
  CHECK(close(matrix.after_vector(row), at::matmul(row, whole)));
  CHECK(close(matrix.corner(2), whole.slice(0, 0, 2).slice(1, 0, 2).slice(2, 0, 2).slice(3, 0, 2)));
  CHECK(matrix.unsqueezed(-3).shape() == std::vector<int64_t>{2, 3, 1, 6, 5});
}

TEST_CASE("the decomposition of a factored matrix is that of its product") {
  const std::vector<std::vector<int64_t>> sizes = {{6, 3, 5}, {3, 6, 5}, {6, 5, 3}, {3, 5, 2}, {4, 4, 4}};
  for (const auto& size : sizes) {
    const FactoredMatrix matrix(random({2, size[0], size[1]}), random({size[1], size[2]}));
    const int64_t rank = *std::min_element(size.begin(), size.end());
    const auto [u, s, v] = matrix.svd();
    const at::Tensor whole = matrix.product();
    CHECK(close(at::matmul(at::matmul(u, at::diag_embed(s)), v.mT()), whole));
    CHECK(close(at::matmul(u.mT(), u), at::eye(rank, at::kDouble).expand({2, rank, rank})));
    CHECK(close(at::matmul(v.mT(), v), at::eye(rank, at::kDouble).expand({2, rank, rank})));
    CHECK(close(s, std::get<1>(at::linalg_svd(whole, false)).slice(-1, 0, rank)));
    CHECK(close(matrix.norm(), whole.square().sum({-2, -1}).sqrt()));
    CHECK(close(matrix.made_even().product(), whole));
    CHECK(close(at::matmul(u, matrix.collapsed_left()), whole));
    CHECK(close(at::matmul(matrix.collapsed_right(), v.mT()), whole));
  }
}

TEST_CASE("a decomposition is kept until a factor changes or a graph is wanted") {
  at::Tensor a = random({5, 3});
  const FactoredMatrix matrix(a, random({3, 5}));
  const at::Tensor first = matrix.svd().S;
  CHECK(FactoredMatrix(matrix).svd().S.is_same(first));
  a.mul_(2);
  CHECK(close(matrix.svd().S, first * 2));
  a.requires_grad_();
  const FactoredMatrix learned(a, matrix.b());
  {
    const at::NoGradGuard no_grad;
    CHECK(!learned.svd().S.requires_grad());
  }
  CHECK(learned.svd().S.requires_grad());
}

TEST_CASE("gradients of a factored matrix are those of its product") {
  at::Tensor a = random({2, 6, 3}).requires_grad_(), b = random({3, 6}).requires_grad_();
  const auto gradient = [&](const at::Tensor& scalar) {
    a.mutable_grad() = b.mutable_grad() = at::Tensor();
    scalar.backward();
    return std::pair(a.grad().clone(), b.grad().clone());
  };
  const FactoredMatrix matrix(a, b);
  const auto expected = gradient(at::matmul(a, b).square().sum({-2, -1}).sqrt().sum());
  for (const at::Tensor& norm : {matrix.norm(), matrix.svd().S.square().sum(-1).sqrt()}) {
    const auto found = gradient(norm.sum());
    CHECK(close(found.first, expected.first));
    CHECK(close(found.second, expected.second));
  }
  const auto trace_of_a_b = gradient(at::matmul(a, b).diagonal(0, -2, -1).sum());
  const auto sum_of_eigenvalues = gradient(at::real(matrix.eigenvalues()).sum());
  CHECK(close(sum_of_eigenvalues.first, trace_of_a_b.first));
}

TEST_CASE("indices of a factored matrix") {
  const FactoredMatrix matrix = some_matrix();
  const at::Tensor whole = matrix.product(), list = at::arange(3, at::kLong).flip(0);
  CHECK(close(part(matrix, {1}), whole.select(0, 1)));
  CHECK(close(part(matrix, {Slice(), -1}), whole.select(1, -1)));
  CHECK(close(part(matrix, {Ellipsis, -1}), whole.slice(3, 4, 5)));
  CHECK(close(part(matrix, {1, 0, -6, 4}), whole[1][0].slice(0, 0, 1).slice(1, 4, 5)));
  CHECK(close(part(matrix, {1, std::nullopt, list, Slice(1, 5, 2)}),
              whole[1].index_select(0, list).unsqueeze(0).slice(2, 1, 5, 2)));
  CHECK(close(part(matrix, {0, list, list, list}),
              whole[0].index_select(0, list).index_select(1, list).index_select(2, list)));
  const at::Tensor mask = whole.sum({-2, -1}) > -1e9;
  CHECK(close(part(matrix, {mask, 2}), whole.flatten(0, 1).slice(1, 2, 3)));
  CHECK(matrix.index({1, 2, 3, 4}).middle() == 4);
  CHECK_THROWS_AS(matrix.index({0, 0, 0, 0, 0}), ShapeError);
  CHECK_THROWS_AS(matrix.index({0, 0, 0, std::nullopt}), ShapeError);
  CHECK_THROWS_AS(matrix.index({0, 0, at::zeros({2, 2}, at::kLong)}), ShapeError);
  CHECK_THROWS_AS(matrix.index({0, at::zeros({3, 6}, at::kBool)}), ShapeError);
  CHECK_THROWS_AS(matrix.index({0, 0, 6}), c10::IndexError);
  CHECK_THROWS_AS(matrix.index({2}), c10::IndexError);
  CHECK_THROWS_AS(matrix.index({Ellipsis, Ellipsis}), c10::IndexError);
}

TEST_CASE("composition scores are quotients of norms") {
  const FactoredMatrix left(random({2, 3, 7, 2}), random({2, 3, 2, 5})), right(random({4, 5, 3}), random({4, 3, 6}));
  const auto norm = [](const at::Tensor& matrix) { return matrix.square().sum({-2, -1}).sqrt(); };
  const at::Tensor l = left.product().unsqueeze(2), r = right.product();
  const at::Tensor expected = norm(at::matmul(l, r)) / norm(l) / norm(r);
  CHECK(close(composition_scores(left, right), expected));
  CHECK(close(composition_scores(left.index({1, 0}), right.index({3})), expected[1][0][3]));
  CHECK(close(composition_scores(left.index({1, 0}), right, false), expected[1][0]));
}

TEST_CASE("singular vectors on the vocabulary") {
  const FactoredMatrix matrix(random({6, 3}), random({3, 5}));
  const at::Tensor unembed = random({5, 11}), scale = random({5});
  const at::Tensor found = singular_vectors(matrix, unembed, 2);
  CHECK(found.sizes() == at::IntArrayRef{11, 1, 2});
  CHECK(close(found.squeeze(1), at::matmul(unembed.mT(), matrix.svd().V.slice(1, 0, 2))));
  CHECK(close(singular_vectors(matrix.product(), unembed, 3).abs(), singular_vectors(matrix, unembed, 3).abs()));
  CHECK(close(singular_vectors(matrix.product(), unembed, 3, scale).abs(),
              singular_vectors(FactoredMatrix(matrix.a(), matrix.b() * scale), unembed, 3).abs()));
  CHECK(singular_vectors(random({3, 5}), unembed, 5).sizes() == at::IntArrayRef{11, 1, 5});
  CHECK_THROWS_AS(singular_vectors(matrix, unembed, 4), InputError);
  CHECK_THROWS_AS(singular_vectors(matrix, unembed, 0), InputError);
  CHECK_THROWS_AS(singular_vectors(matrix, random({4, 11}), 2), ShapeError);
  CHECK_THROWS_AS(singular_vectors(random({2, 6, 5}), unembed, 2), ShapeError);
  CHECK_THROWS_AS(singular_vectors(random({6, 5}), unembed, 2, random({6})), ShapeError);
}

TEST_CASE("factors that don't fit are refused") {
  const FactoredMatrix matrix = some_matrix();
  CHECK_THROWS_AS(FactoredMatrix(random({4, 3}), random({4, 3})), ShapeError);
  CHECK_THROWS_AS(FactoredMatrix(random({4}), random({4, 3})), ShapeError);
  CHECK_THROWS_AS(FactoredMatrix(random({2, 4, 3}), random({3, 3, 4})), ShapeError);
  CHECK_THROWS_AS(matrix.times(random({6, 5})), ShapeError);
  CHECK_THROWS_AS(matrix.after(random({5, 5})), ShapeError);
  CHECK_THROWS_AS(matrix.times(random({4, 5, 2})), ShapeError);
  CHECK_THROWS_AS(matrix.after(random({4, 2, 6})), ShapeError);
  CHECK_THROWS_AS(matrix.times_vector(random({6})), ShapeError);
  CHECK_THROWS_AS(matrix.times_vector(random({})), ShapeError);
  CHECK_THROWS_AS(matrix.after_vector(random({5})), ShapeError);
  CHECK_THROWS_AS(matrix.scaled(random({2})), ShapeError);
  CHECK_THROWS_AS(matrix.reverse_product(), ShapeError);
  CHECK_THROWS_AS(matrix.eigenvalues(), ShapeError);
  CHECK_THROWS_AS(matrix.unsqueezed(3), ShapeError);
  CHECK_THROWS_AS(matrix.unsqueezed(-6), ShapeError);
  CHECK_THROWS_AS(composition_scores(matrix, matrix), ShapeError);
  CHECK_THROWS_AS(composition_scores(matrix, {random({4, 5, 2}), random({4, 2, 6})}, false), ShapeError);
}
