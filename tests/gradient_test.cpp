#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/analysis/patching.h"
#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

at::Tensor loss_of(Trace& trace) { return trace.logits().select(-1, 5).square().sum(); }

// The derivative of the loss by one entry of a node, by moving it a little to both sides.
double slope(const Trace& trace, const std::string& node, const std::vector<int64_t>& entry) {
  constexpr double kStep = 1e-5;
  double ends[2];
  for (int side = 0; side < 2; ++side) {
    Trace fork = trace.fork();
    at::Tensor value = fork.read(node).clone();
    at::Tensor place = value;
    for (int64_t index : entry) place = place.select(0, index);
    place.add_(side == 0 ? -kStep : kStep);
    fork.set(node, value);
    ends[side] = loss_of(fork).item<double>();
  }
  return (ends[1] - ends[0]) / (2 * kStep);
}

}  // namespace

TEST_CASE("gradients are slopes, also at nodes that fused steps pass over") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 1, 5));
    trace.set("z0", at::zeros({}, at::kDouble), Region().at("head", {1}));
    Trace learned = trace.fork();
    learned.require_grad();
    const std::vector<std::pair<std::string, std::vector<int64_t>>> entries = {
        {"blocks.1.hook_resid_pre", {0, 2, 3}},       {"blocks.1.attn.hook_z", {0, 3, 2, 1}},
        {"blocks.1.attn.hook_pattern", {0, 2, 4, 1}}, {"blocks.1.attn.hook_attn_scores", {0, 1, 3, 2}},
        {"blocks.1.hook_q_input", {0, 4, 1, 2}},      {"blocks.2.ln1.hook_scale", {0, 1, 0}},
        {"blocks.0.attn.hook_v", {0, 0, 1, 3}},       {"hook_embed", {0, 1, 7}}};
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries) names.push_back(name);
    const std::vector<at::Tensor> gradients = learned.grad(loss_of(learned), names);
    for (size_t i = 0; i < entries.size(); ++i) {
      at::Tensor found = gradients[i];
      for (int64_t index : entries[i].second) found = found.select(0, index);
      INFO(names[i]);
      CHECK(found.item<double>() == doctest::Approx(slope(trace, names[i], entries[i].second)).epsilon(1e-5));
    }
  }
}

TEST_CASE("gradients flow back to tensors that the weights are views of") {
  std::map<std::string, at::Tensor> tensors = tiny_tensors(kTinyGpt2);
  for (auto& [name, tensor] : tensors) tensor.set_requires_grad(true);
  const auto model = Model::from_tensors(kTinyGpt2, tensors, {at::kDouble, at::kCPU, true});
  Trace trace(model, some_tokens(*model, 1, 5));
  const at::Tensor loss = loss_of(trace);
  const std::string name = "blocks.1.attn.k.weight";  // Rows 12 to 24 of c_attn, which lies the other way round.
  const at::Tensor by_name = trace.grad(loss, {name}).front();
  loss.backward({}, /*retain_graph=*/true);
  const at::Tensor& given = tensors.at("h.1.attn.c_attn.weight");
  CHECK(close(by_name, given.grad().narrow(1, 12, 12).t()));
  CHECK(by_name.abs().max().item<double>() > 0);
  {
    const at::NoGradGuard no_grad;
    given.mutable_grad().zero_();
    given.mul_(2);  // As an optimiser does; the open trace follows.
  }
  const auto twin = Model::from_tensors(kTinyGpt2, tensors, {at::kDouble, at::kCPU});
  Trace again(twin, trace.tokens());
  CHECK(close(trace.logits(), again.logits()));
  loss_of(trace).backward();
  CHECK(given.grad().abs().max().item<double>() > 0);

  tensors.at("h.1.attn.c_attn.weight") = given.detach().to(at::kFloat).set_requires_grad(true);
  CHECK_THROWS_WITH_AS(Model::from_tensors(kTinyGpt2, tensors, {at::kDouble, at::kCPU, true}),
                       doctest::Contains("c_attn.weight' would be copied into 'blocks.1.attn.q.weight'"), InputError);
}

TEST_CASE("functions of gradients are edits of their trace alone") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  Trace other = trace.fork();
  int calls = 0;
  trace.hook_gradient("resid_pre1", [&](const at::Tensor& gradient, const HookCall& call) {
    ++calls;
    CHECK(call.node().name == "blocks.1.hook_resid_pre");
    return gradient * 3;
  });
  trace.require_grad();
  other.require_grad();
  const at::Tensor mine = trace.grad(loss_of(trace), {"resid_pre0"}).front();
  CHECK(calls == 1);
  const at::Tensor plain = other.grad(loss_of(other), {"resid_pre0"}).front();
  CHECK(calls == 1);
  CHECK(close(mine, plain * 3));  // All of the gradient comes by the stream.
  CHECK(trace.edited() == std::vector<std::string>{"blocks.1.hook_resid_pre"});
  trace.unset("resid_pre1");
  CHECK(close(trace.grad(loss_of(trace), {"resid_pre0"}).front(), plain));
}

TEST_CASE("without gradients a trace that requires them computes the same") {
  const auto model = tiny_llama();
  Trace trace(model, some_tokens(*model, 2, 5));
  const at::Tensor plain = trace.logits();
  trace.require_grad();
  CHECK(close(trace.logits().detach(), plain));
  CHECK(trace.logits().requires_grad());
  const at::NoGradGuard no_grad;
  CHECK(at::equal(trace.logits(), plain));
  CHECK_FALSE(trace.logits().requires_grad());
}

TEST_CASE("what a gradient can't be taken of") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  CHECK_THROWS_AS(trace.grad(loss_of(trace), {"z1"}), InputError);
  trace.require_grad();
  CHECK_THROWS_AS(trace.grad(trace.logits(), {"z1"}), ShapeError);
  CHECK_THROWS_AS(trace.grad(loss_of(trace), {"zz1"}), NameError);
  CHECK_THROWS_AS(trace.grad(trace.read("z0").sum(), {"z1"}), InputError);
}

TEST_CASE("attribution patching estimates activation patching") {
  const auto model = tiny_llama();
  Trace clean(model, some_tokens(*model, 1, 5)), corrupted(model, some_tokens(*model, 1, 5));
  const Metric metric = logit_difference(3, 4);
  const auto attributions = attribution_patching(clean, corrupted, metric, {"resid_pre1", "pattern1"});
  REQUIRE(attributions.size() == 2);
  CHECK(attributions[0].node == "blocks.1.hook_resid_pre");
  Trace patched = corrupted.fork();
  const at::Tensor here = corrupted.read("resid_pre1"), there = clean.read("resid_pre1");
  patched.set("resid_pre1", here + 1e-6 * (there - here));
  const double change =
      (metric.value(patched.logits_at(-1).unsqueeze(1)) - metric.value(corrupted.logits_at(-1).unsqueeze(1)))
          .item<double>();
  CHECK(attributions[0].values.sum().item<double>() == doctest::Approx(change / 1e-6).epsilon(1e-4));
}
