#pragma once
// The activation functions of the block, on tensors at hand. Gradients flow through them.

#include <ATen/core/Tensor.h>

#include <string>

namespace glassformer {

/// x through the function that config files call `name` ("gelu_new", "silu", "relu2", "solu", …): elementwise, but solu
/// is x · softmax(x) over the last axis. Throws `UnsupportedError` with the names that there are.
at::Tensor activate(const at::Tensor& x, const std::string& name);

/// xIELU (Huang et al. 2024), elementwise: αₚx² + βx where x > 0, else αₙ(exp(min(x, eps)) - 1 - x) + βx.
at::Tensor xielu(const at::Tensor& x, double alpha_p, double alpha_n, double beta, double eps);

/// The same with alphas as models learn and store them, all numbers as tensors with one: αₚ is softplus of the one
/// alpha, αₙ is β + softplus of the other.
at::Tensor learned_xielu(const at::Tensor& x, const at::Tensor& alpha_p, const at::Tensor& alpha_n,
                         const at::Tensor& beta, const at::Tensor& eps);

/// cap · tanh(x / cap), elementwise.
at::Tensor soft_cap(const at::Tensor& x, double cap);

}  // namespace glassformer
