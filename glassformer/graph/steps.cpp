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
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tensor.h>

#include "glassformer/graph/linear.h"

namespace glassformer::steps {
namespace {

// Norms, softmax and rotary angles are computed in at least float32, as every reference implementation does.
at::ScalarType at_least_float(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor widened(const at::Tensor& x) { return x.to(at_least_float(x.scalar_type())); }

at::Tensor centred(const at::Tensor& x, Norm norm) { return norm == Norm::kLayerNorm ? x - x.mean(-1, true) : x; }

at::Tensor bias_of(const StepCall& call, WeightId bias) { return bias < 0 ? at::Tensor() : call.weights.get(bias); }

at::Tensor apply_weight(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor scaled = x * weight;
  return bias.defined() ? scaled + bias : scaled;
}

at::Tensor normalised(const at::Tensor& x, Norm norm, double eps) {
  const at::Tensor centre = centred(widened(x), norm);
  return (centre * at::rsqrt(centre.square().mean(-1, true) + eps)).to(x.scalar_type());
}

at::Tensor activated(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
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
  }
  return x;
}

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
  return [](const StepCall& call) {
    at::Tensor total = call.inputs[0] + call.inputs[1];
    for (size_t i = 2; i < call.inputs.size(); ++i) total = total + call.inputs[i];
    return total;
  };
}

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
    return apply_weight(call.inputs[0], call.weights.get(weight), bias_of(call, bias));
  };
}

Run norm_fused(Norm norm, double eps, WeightId weight, WeightId bias) {
  return [norm, eps, weight, bias](const StepCall& call) {
    const at::Tensor &x = call.inputs[0], &w = call.weights.get(weight);
    if (norm == Norm::kLayerNorm) return at::layer_norm(x, {x.size(-1)}, w, bias_of(call, bias), eps);
    if (at_least_float(x.scalar_type()) == x.scalar_type()) return at::rms_norm(x, {x.size(-1)}, w, eps);
    return apply_weight(normalised(x, norm, eps), w, bias_of(call, bias));
  };
}

Run linear(WeightId weight, WeightId bias, int64_t n_heads) {
  return [weight, bias, n_heads](const StepCall& call) {
    at::Tensor out = linear_rows(call.inputs[0], call.weights.get(weight), bias_of(call, bias));
    return n_heads > 0 ? out.view({out.size(0), n_heads, -1}) : out;
  };
}

Run linear_by_head(const HeadInput& input) {
  return [input](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    const at::Tensor ready = apply_weight(normalised(x, input.norm, input.eps), call.weights.get(input.norm_weight),
                                          bias_of(call, input.norm_bias));
    const at::Tensor& rows = call.weights.get(input.weight);
    const at::Tensor by_head = rows.reshape({input.n_heads, -1, rows.size(1)});
    at::Tensor out = at::einsum("rhd,hed->rhe", {ready, by_head});
    if (input.bias < 0) return out;
    return out + call.weights.get(input.bias).reshape({input.n_heads, -1});
  };
}

Run merge_heads(WeightId weight, WeightId bias) {
  return [weight, bias](const StepCall& call) {
    return linear_rows(call.inputs[0].flatten(1), call.weights.get(weight), bias_of(call, bias));
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
    const at::Tensor angles = at::cat({half, half}, -1);
    return ((sine ? angles.sin() : angles.cos()) * rope.attention_factor).to(dtype);
  };
}

Run rotate(int64_t dims) {
  return [dims](const StepCall& call) {
    const at::Tensor &x = call.inputs[0], cos = call.inputs[1].unsqueeze(1), sin = call.inputs[2].unsqueeze(1);
    const bool whole = dims == x.size(-1);
    const at::Tensor turned = whole ? x : x.narrow(-1, 0, dims);
    const at::Tensor first = turned.narrow(-1, 0, dims / 2), second = turned.narrow(-1, dims / 2, dims / 2);
    const at::Tensor out = turned * cos + at::cat({-second, first}, -1) * sin;
    return whole ? out : at::cat({out, x.narrow(-1, dims, x.size(-1) - dims)}, -1);
  };
}

Run activate(Activation activation) {
  return [activation](const StepCall& call) { return activated(call.inputs[0], activation); };
}

Run gate(Activation activation) {
  return [activation](const StepCall& call) { return activated(call.inputs[0], activation).mul(call.inputs[1]); };
}

}  // namespace glassformer::steps
