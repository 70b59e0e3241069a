#include "glassformer/graph/activations.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/where.h>

#include "glassformer/graph/steps.h"

namespace glassformer {
namespace {

template <typename Number>
at::Tensor xielu_of(const at::Tensor& x, const Number& alpha_p, const Number& alpha_n, const Number& beta,
                    const Number& eps) {
  const at::Tensor linear = x * beta;
  return at::where(x > 0, x * x * alpha_p + linear, (at::expm1(x.clamp_max(eps)) - x) * alpha_n + linear);
}

}  // namespace

at::Tensor activate(const at::Tensor& x, const std::string& name) {
  return steps::activated(x, activation_named(name, "activate"));
}

at::Tensor xielu(const at::Tensor& x, double alpha_p, double alpha_n, double beta, double eps) {
  return xielu_of<double>(x, alpha_p, alpha_n, beta, eps);
}

at::Tensor learned_xielu(const at::Tensor& x, const at::Tensor& alpha_p, const at::Tensor& alpha_n,
                         const at::Tensor& beta, const at::Tensor& eps) {
  return xielu_of<at::Tensor>(x, at::softplus(alpha_p), beta + at::softplus(alpha_n), beta, eps);
}

at::Tensor soft_cap(const at::Tensor& x, double cap) { return steps::soft_capped(x, cap); }

}  // namespace glassformer
