#include "glassformer/graph/linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <doctest/doctest.h>

using namespace glassformer;

TEST_CASE("products of few rows equal those in double precision") {
  for (int64_t n_rows : {1, 2, 3, 4, 5})
    for (int64_t n_in : {1, 3, 4, 16, 37, 130})
      for (int64_t n_out : {1, 16, 48, 50, 1040, 2064})
        for (bool by_columns : {false, true})
          for (bool with_bias : {false, true}) {
            const at::Tensor x = at::randn({n_rows, n_in});
            const at::Tensor weight = by_columns ? at::randn({n_in, n_out}).t() : at::randn({n_out, n_in});
            const at::Tensor bias = with_bias ? at::randn({n_out}) : at::Tensor();
            const at::Tensor expected =
                at::linear(x.to(at::kDouble), weight.to(at::kDouble), with_bias ? bias.to(at::kDouble) : at::Tensor());
            const at::Tensor found = linear_rows(x, weight, bias);
            CAPTURE(n_rows);
            CAPTURE(n_in);
            CAPTURE(n_out);
            CHECK(found.sizes() == expected.sizes());
            CHECK((found.to(at::kDouble) - expected).abs().max().item<double>() <=
                  1e-5 * std::max(1.0, expected.abs().max().item<double>()));
          }
}

TEST_CASE("rows that are a part of a larger tensor") {
  const at::Tensor all = at::randn({3, 40}), weight = at::randn({64, 40});
  const at::Tensor x = all.narrow(1, 4, 16), part = weight.narrow(1, 4, 16);
  CHECK((linear_rows(x, part, {}) - at::linear(x, part)).abs().max().item<double>() < 1e-4);
}
