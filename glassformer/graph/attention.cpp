#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <limits>

#include "glassformer/graph/steps.h"

namespace glassformer::steps {
namespace {

MaskOptions mask_options(const StepCall& call, const Attention& attention, size_t mask_input) {
  MaskOptions options{attention.window, {}, call.query_mask};
  if (const at::Tensor& mask = call.inputs[mask_input]; mask.defined())
    options.key_mask = mask.narrow(1, 0, call.n_keys);
  return options;
}

// batch pos kv_head d_head -> batch kv_head 1 pos d_head, so that each group of query heads shares its keys unexpanded.
at::Tensor by_group(const at::Tensor& x) { return x.permute({0, 2, 1, 3}).unsqueeze(2); }

// batch pos head d_head -> batch kv_head group pos d_head
at::Tensor grouped_queries(const at::Tensor& q, const Attention& attention) {
  const at::Tensor heads = q.permute({0, 2, 1, 3});
  return heads.unflatten(1, {attention.n_kv_heads, attention.n_heads / attention.n_kv_heads});
}

at::Tensor biased(const at::Tensor& scores, const StepCall& call, const Attention& attention) {
  const double cap = attention.score_cap;
  const at::Tensor capped = cap > 0 ? soft_capped(scores, cap) : scores;
  if (!attention.alibi) return capped;
  const at::ScalarType wide = scores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return capped + alibi_bias(attention.n_heads, call.rows, call.n_keys, scores.options().dtype(wide)).to(scores);
}

}  // namespace

at::Tensor alibi_bias(int64_t n_heads, const RowSet& rows, int64_t n_keys, const at::TensorOptions& options) {
  const at::Tensor queries = at::tensor(rows.rows(), options), keys = at::arange(n_keys, options);
  const at::Tensor distance = (keys - queries.unsqueeze(1)).clamp_max(0);
  const at::Tensor powers = at::arange(1, n_heads + 1, options) * (-8.0 / static_cast<double>(n_heads));
  return powers.exp2().reshape({-1, 1, 1}) * distance;
}

at::Tensor masked_scores(const at::Tensor& scores, const RowSet& rows, const MaskOptions& options) {
  const at::Tensor allowed = allowed_keys(rows, scores.size(-1), options, scores.device());
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  return allowed.defined() ? scores.masked_fill(allowed.logical_not(), kNever) : scores;
}

Run scores(const Attention& attention) {
  return [attention](const StepCall& call) {
    at::Tensor q = call.inputs[0], k = call.inputs[1].narrow(1, 0, call.n_keys);
    if (attention.upcast) {
      q = q.to(at::kFloat);
      k = k.to(at::kFloat);
    }
    const at::Tensor products = at::matmul(grouped_queries(q, attention), by_group(k).transpose(-1, -2));
    const at::Tensor scaled = biased(products.flatten(1, 2) * attention.scale, call, attention);
    return masked_scores(scaled, call.rows, mask_options(call, attention, 2));
  };
}

Run pattern(at::ScalarType dtype, WeightId sinks) {
  return [dtype, sinks](const StepCall& call) {
    const at::Tensor& scores = call.inputs[0];
    const auto wide = scores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor weights;
    if (sinks < 0) {
      weights = at::softmax(scores, -1, wide);
    } else {
      const at::Tensor sink = call.weights.get(sinks).to(wide).reshape({1, -1, 1, 1});
      const at::Tensor all = at::cat({scores.to(wide), sink.expand({scores.size(0), -1, scores.size(2), 1})}, -1);
      weights = at::softmax(all, -1).narrow(-1, 0, scores.size(-1));
    }
    return weights.masked_fill(weights.isnan(), 0).to(dtype);
  };
}

Run mix_values(const Attention& attention) {
  return [attention](const StepCall& call) {
    const at::Tensor& pattern = call.inputs[0];
    const at::Tensor v = call.inputs[1].narrow(1, 0, pattern.size(3));
    const at::Tensor grouped = pattern.unflatten(1, {attention.n_kv_heads, attention.n_heads / attention.n_kv_heads});
    return at::matmul(grouped, by_group(v)).flatten(1, 2).permute({0, 2, 1, 3}).contiguous();
  };
}

Run fused_attention(const Attention& attention) {
  return [attention](const StepCall& call) {
    const MaskOptions options = mask_options(call, attention, 3);
    const at::Tensor q = call.inputs[0].permute({0, 2, 1, 3});
    const at::Tensor k = call.inputs[1].narrow(1, 0, call.n_keys).permute({0, 2, 1, 3});
    const at::Tensor v = call.inputs[2].narrow(1, 0, call.n_keys).permute({0, 2, 1, 3});
    const bool causal = is_plain_causal(call.rows, call.n_keys, options);
    std::optional<at::Tensor> mask;
    if (!causal)
      if (const at::Tensor allowed = allowed_keys(call.rows, call.n_keys, options, q.device()); allowed.defined())
        mask = allowed;
    const bool grouped = attention.n_heads != attention.n_kv_heads;
    const at::Tensor z = at::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, attention.scale, grouped);
    return z.permute({0, 2, 1, 3}).contiguous();
  };
}

}  // namespace glassformer::steps
