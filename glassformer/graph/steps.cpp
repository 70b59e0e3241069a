#include "glassformer/graph/steps.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tensor.h>

#include <cmath>

#include "glassformer/graph/activations.h"
#include "glassformer/graph/linear.h"

namespace glassformer::steps {
namespace {

// Norms, softmax and rotary angles are computed in at least float32, as every reference implementation does.
at::ScalarType at_least_float(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor widened(const at::Tensor& x) { return x.to(at_least_float(x.scalar_type())); }

at::Tensor centred(const at::Tensor& x, Norm norm) { return norm == Norm::kLayerNorm ? x - x.mean(-1, true) : x; }

at::Tensor optional(const StepCall& call, WeightId weight) {
  return weight < 0 ? at::Tensor() : call.weights.get(weight);
}

at::Tensor total(const StepCall& call) {
  at::Tensor total = call.inputs[0];
  for (size_t i = 1; i < call.inputs.size(); ++i) total = total + call.inputs[i];
  return total;
}

at::Tensor apply_weight(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!weight.defined()) return x;
  const at::Tensor scaled = x * weight;
  return bias.defined() ? scaled + bias : scaled;
}

at::Tensor normalised(const at::Tensor& x, Norm norm, double eps) {
  if (norm == Norm::kNone) return x;
  const at::Tensor centre = centred(widened(x), norm);
  return (centre * at::rsqrt(centre.square().mean(-1, true) + eps)).to(x.scalar_type());
}

// (x, y) -> (-y, x) for each pair of dimensions.
at::Tensor quarter_turned(const at::Tensor& x, bool adjacent) {
  if (adjacent) {
    const at::Tensor pairs = x.unflatten(-1, {-1, 2});
    return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
  }
  const int64_t half = x.size(-1) / 2;
  return at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
}

at::Tensor activated(const StepCall& call, const at::Tensor& x, const ActivationStep& activation) {
  if (activation.kind != Activation::kXielu) return steps::activated(x, activation.kind);
  const at::Tensor beta = at::scalar_tensor(0.5, x.options()), eps = at::scalar_tensor(-1e-6, x.options());
  return learned_xielu(x, call.weights.get(activation.alpha_p), call.weights.get(activation.alpha_n), beta, eps);
}

constexpr double kGluLimit = 7, kGluSlope = 1.702;

}  // namespace

Run identity() {
  return [](const StepCall& call) { return call.inputs[0]; };
}

Run repeat_heads(int64_t n_heads) {
  return [n_heads](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    return x.unsqueeze(1).expand({x.size(0), n_heads, x.size(1)});
  };
}

Run embed(WeightId table) {
  return [table](const StepCall& call) { return at::embedding(call.weights.get(table), call.inputs[0]); };
}

Run sum() {
  return [](const StepCall& call) { return total(call); };
}

Run soft_cap(double cap) {
  return [cap](const StepCall& call) { return soft_capped(call.inputs[0], cap); };
}

at::Tensor soft_capped(const at::Tensor& x, double cap) { return at::tanh(x / cap) * cap; }

Run norm_scale(Norm norm, double eps) {
  return [norm, eps](const StepCall& call) {
    return (centred(widened(call.inputs[0]), norm).square().mean(-1, true) + eps).sqrt();
  };
}

Run norm_divide(Norm norm) {
  return [norm](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    return (centred(widened(x), norm) / call.inputs[1]).to(x.scalar_type());
  };
}

Run norm_whole(Norm norm, double eps) {
  return [norm, eps](const StepCall& call) { return normalised(call.inputs[0], norm, eps); };
}

Run norm_apply(WeightId weight, WeightId bias) {
  return [weight, bias](const StepCall& call) {
    return apply_weight(call.inputs[0], optional(call, weight), optional(call, bias));
  };
}

Run norm_fused(Norm norm, double eps, WeightId weight, WeightId bias) {
  return [norm, eps, weight, bias](const StepCall& call) {
    const at::Tensor &x = call.inputs[0], w = optional(call, weight);
    if (norm == Norm::kLayerNorm) return at::layer_norm(x, {x.size(-1)}, w, optional(call, bias), eps);
    if (w.defined() && at_least_float(x.scalar_type()) == x.scalar_type()) return at::rms_norm(x, {x.size(-1)}, w, eps);
    return apply_weight(normalised(x, norm, eps), w, optional(call, bias));
  };
}

Run linear(WeightId weight, WeightId bias, int64_t n_heads, int64_t repeat) {
  return [weight, bias, n_heads, repeat](const StepCall& call) {
    at::Tensor out = linear_rows(total(call), call.weights.get(weight), optional(call, bias));
    if (n_heads > 0) out = out.view({out.size(0), n_heads, -1});
    return repeat > 1 ? out.repeat_interleave(repeat, 1) : out;
  };
}

Run linear_by_head(const HeadInput& input) {
  return [input](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    at::Tensor ready = apply_weight(normalised(x, input.norm, input.eps), optional(call, input.norm_weight),
                                    optional(call, input.norm_bias));
    if (call.inputs.size() > 1) ready = ready + call.inputs[1].unsqueeze(1);
    const at::Tensor& rows = call.weights.get(input.weight);
    const auto for_each = [&](const at::Tensor& heads) {
      return input.repeat > 1 ? heads.repeat_interleave(input.repeat, 0) : heads;
    };
    const at::Tensor by_head = for_each(rows.reshape({input.n_heads, -1, rows.size(1)}));
    at::Tensor out = at::einsum("rhd,hed->rhe", {ready, by_head});
    if (input.bias < 0) return out;
    return out + for_each(call.weights.get(input.bias).reshape({input.n_heads, -1}));
  };
}

Run merge_heads(WeightId weight, WeightId bias) {
  return [weight, bias](const StepCall& call) {
    return linear_rows(call.inputs[0].flatten(1), call.weights.get(weight), optional(call, bias));
  };
}

Run head_results(WeightId weight) {
  return [weight](const StepCall& call) {
    const at::Tensor &z = call.inputs[0], &columns = call.weights.get(weight);
    const at::Tensor by_head = columns.reshape({columns.size(0), z.size(1), z.size(2)});
    return at::einsum("rhe,dhe->rhd", {z, by_head});
  };
}

Run sum_heads(WeightId bias) {
  return [bias](const StepCall& call) {
    const at::Tensor total = call.inputs[0].sum(1);
    return bias < 0 ? total : total + call.weights.get(bias);
  };
}

Run rotary_table(const Rope& rope, bool sine, at::ScalarType dtype) {
  return [rope, sine, dtype](const StepCall& call) {
    const at::Tensor& positions = call.inputs[0];
    const std::vector<float> table = inverse_frequencies(rope, call.length_class);
    const at::Tensor frequencies = at::tensor(table, at::TensorOptions(at::kFloat)).to(positions.device());
    const at::Tensor half = positions.to(at::kFloat).unsqueeze(1) * frequencies;
    const at::Tensor angles = rope.adjacent_pairs ? half.repeat_interleave(2, -1) : at::cat({half, half}, -1);
    return ((sine ? angles.sin() : angles.cos()) * rope.attention_factor).to(dtype);
  };
}

Run rotate(const Rope& rope) {
  return [dims = rope.dims, adjacent = rope.adjacent_pairs](const StepCall& call) {
    const at::Tensor &x = call.inputs[0], cos = call.inputs[1].unsqueeze(1), sin = call.inputs[2].unsqueeze(1);
    const bool whole = dims == x.size(-1);
    const at::Tensor turned = whole ? x : x.narrow(-1, 0, dims);
    const at::Tensor out = turned * cos + quarter_turned(turned, adjacent) * sin;
    return whole ? out : at::cat({out, x.narrow(-1, dims, x.size(-1) - dims)}, -1);
  };
}

Run split_heads(int64_t n_heads) {
  return [n_heads](const StepCall& call) { return call.inputs[0].unflatten(-1, {n_heads, -1}); };
}

Run join_heads() {
  return [](const StepCall& call) { return call.inputs[0].flatten(-2); };
}

Run clamp(double limit) {
  return [limit](const StepCall& call) { return call.inputs[0].clamp(-limit, limit); };
}

Run scale_by_log(int64_t length) {
  return [length](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    if (call.rows.end() <= length) return x;
    const at::Tensor numbers = at::tensor(call.rows.rows(), at::TensorOptions(at::kFloat)) + 1;
    const at::Tensor scale = (numbers.log() / std::log(static_cast<double>(length))).masked_fill(numbers <= length, 1);
    return x * scale.to(x.options()).reshape({1, -1, 1, 1});
  };
}

at::Tensor activated(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kReluSquared:
      return at::relu(x).square();
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kTanh:
      return at::tanh(x);
    case Activation::kQuickGelu:
      return x * at::sigmoid(x * 1.702);
    case Activation::kSolu:
      return x * at::softmax(x, -1);
    case Activation::kXielu:       // Has weights.
    case Activation::kClampedGlu:  // Is no function of one factor.
      break;
  }
  return x;
}

Run activate(const ActivationStep& activation) {
  return [activation](const StepCall& call) { return activated(call, call.inputs[0], activation); };
}

at::Tensor gated(const StepCall& call, const at::Tensor& x, const at::Tensor& y, const ActivationStep& activation) {
  if (activation.kind != Activation::kClampedGlu) return activated(call, x, activation).mul(y);
  const at::Tensor gate = x.clamp_max(kGluLimit);
  return (y.clamp(-kGluLimit, kGluLimit) + 1) * (gate * at::sigmoid(gate * kGluSlope));
}

Run gate(const ActivationStep& activation, WeightId bias) {
  return [activation, bias](const StepCall& call) {
    const at::Tensor product = gated(call, call.inputs[0], call.inputs[1], activation);
    return bias < 0 ? product : product + call.weights.get(bias);
  };
}

Run times(WeightId bias) {
  return [bias](const StepCall& call) {
    const at::Tensor product = call.inputs[0].mul(call.inputs[1]);
    return bias < 0 ? product : product + call.weights.get(bias);
  };
}

}  // namespace glassformer::steps
