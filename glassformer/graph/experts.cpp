// Mixtures of experts: each row of the input goes through a few of many gated MLPs. A row has a slot for each of its
// experts; what the experts make has an axis of slots, and every expert computes its own rows only.

#include "glassformer/graph/experts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <numeric>

#include "glassformer/base/errors.h"
#include "glassformer/graph/linear.h"

namespace glassformer::steps {
namespace {

// All slots of all rows, those of one expert side by side.
struct Routing {
  std::vector<int64_t> counts;  // Of each expert's slots, in the order of experts.
  at::Tensor order;             // Which slot comes where: row * slots + slot.
  at::Tensor back;              // Where each slot has come.
  int64_t n_rows = 0, n_slots = 0;

  at::Tensor rows_of(const at::Tensor& x) const {
    return x.dim() == 2 ? x.index_select(0, order.floor_divide(n_slots)) : x.flatten(0, 1).index_select(0, order);
  }
  at::Tensor by_slot(const std::vector<at::Tensor>& of_experts) const {
    return at::cat(of_experts).index_select(0, back).unflatten(0, {n_rows, n_slots});
  }
};

Routing routing(const at::Tensor& indices, size_t n_experts) {
  const at::Tensor given = indices.to(at::kCPU).contiguous();
  const int64_t* const expert = given.const_data_ptr<int64_t>();
  const int64_t n_all = given.numel();
  Routing made{std::vector<int64_t>(n_experts, 0), {}, {}, indices.size(0), indices.size(1)};
  for (int64_t i = 0; i < n_all; ++i) {
    if (expert[i] < 0 || expert[i] >= static_cast<int64_t>(n_experts))
      throw InputError(str("expert ", expert[i], " was chosen; there are ", n_experts));
    ++made.counts[static_cast<size_t>(expert[i])];
  }
  std::vector<int64_t> next(n_experts, 0), order(static_cast<size_t>(n_all)), back(static_cast<size_t>(n_all));
  std::partial_sum(made.counts.begin(), std::prev(made.counts.end()), std::next(next.begin()));
  for (int64_t i = 0; i < n_all; ++i) {
    const int64_t place = next[static_cast<size_t>(expert[i])]++;
    order[static_cast<size_t>(place)] = i;
    back[static_cast<size_t>(i)] = place;
  }
  made.order = at::tensor(order, at::kLong).to(indices.device());
  made.back = at::tensor(back, at::kLong).to(indices.device());
  return made;
}

at::Tensor multiplied(const StepCall& call, const at::Tensor& x, const ExpertWeights& weights, size_t expert) {
  const WeightId bias = weights.biases.empty() ? -1 : weights.biases[expert];
  return linear_rows(x, call.weights.get(weights.weights[expert]), bias < 0 ? at::Tensor() : call.weights.get(bias));
}

// Calls `compute(expert, its rows of x)` for each expert that has any.
template <typename Compute>
at::Tensor by_expert(const Routing& routing, const at::Tensor& x, const Compute& compute) {
  const at::Tensor rows = routing.rows_of(x);
  std::vector<at::Tensor> made;
  int64_t begin = 0;
  for (size_t expert = 0; expert < routing.counts.size(); ++expert) {
    const int64_t count = routing.counts[expert];
    if (count > 0) made.push_back(compute(expert, rows.narrow(0, begin, count)));
    begin += count;
  }
  return routing.by_slot(made);
}

at::Tensor mixed(const at::Tensor& out, const at::Tensor& indices, const at::Tensor& weights, const Experts& experts) {
  at::Tensor shares = experts.top_first ? weights.gather(-1, indices)
                                        : std::get<0>(at::topk(weights, experts.per_token, -1, true, true));
  if (experts.norm_weights) shares = shares / shares.sum(-1, true);
  return (out * shares.to(out.scalar_type()).unsqueeze(-1)).sum(1);
}

}  // namespace

Run expert_weights(const Experts& experts) {
  return [experts](const StepCall& call) {
    const at::Tensor& logits = call.inputs[0];
    if (!experts.top_first) return at::softmax(logits, -1, at::kFloat);
    const auto [top, indices] = at::topk(logits, experts.per_token, -1, true, true);
    const at::Tensor none = at::zeros(logits.sizes(), logits.options().dtype(at::kFloat));
    return none.scatter(-1, indices, at::softmax(top, -1, at::kFloat));
  };
}

Run choose(int64_t count) {
  return [count](const StepCall& call) { return std::get<1>(at::topk(call.inputs[0], count, -1, true, true)); };
}

Run expert_linear(const ExpertWeights& weights) {
  return [weights](const StepCall& call) {
    const at::Tensor& x = call.inputs[0];
    return by_expert(routing(call.inputs[1], weights.weights.size()), x,
                     [&](size_t expert, const at::Tensor& rows) { return multiplied(call, rows, weights, expert); });
  };
}

Run mix_experts(const Experts& experts) {
  return [experts](const StepCall& call) { return mixed(call.inputs[0], call.inputs[1], call.inputs[2], experts); };
}

Run fused_experts(const Experts& experts, const ExpertMlps& mlps, const ActivationStep& activation) {
  return [experts, mlps, activation](const StepCall& call) {
    const at::Tensor &x = call.inputs[0], &indices = call.inputs[1];
    const Routing route = routing(indices, mlps.in.weights.size());
    const at::Tensor out = by_expert(route, x, [&](size_t expert, const at::Tensor& rows) {
      const at::Tensor gate = multiplied(call, rows, mlps.gate, expert), in = multiplied(call, rows, mlps.in, expert);
      return multiplied(call, gated(call, gate, in, activation), mlps.out, expert);
    });
    return mixed(out, indices, call.inputs[2], experts);
  };
}

}  // namespace glassformer::steps
