#include "glassformer/graph/weights.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "glassformer/base/errors.h"
#include "glassformer/trace/batch.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

at::Tensor weight(const Model& model, const std::string& name) { return model.weights().get(name); }

at::Tensor fresh_logits(const std::shared_ptr<const Model>& model, Trace& trace) {
  return Trace(model, trace.tokens()).logits();
}

// A step on given inputs, away from any trace.
at::Tensor run(const Step& step, const Model& model, const std::vector<at::Tensor>& inputs, int64_t length) {
  const RowSet rows(0, length);
  return step.run({inputs, model.weights(), rows, length, 0});
}

}  // namespace

TEST_CASE("a step lists exactly the weights that it uses") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    constexpr int64_t kLength = 5;
    Trace trace(model, some_tokens(*model, 1, kLength));
    size_t steps = 0;
    for (const Node& node : model->graph().nodes())
      for (const Step* step : {&node.open, &node.fast}) {
        if (!step->run) continue;
        std::vector<at::Tensor> inputs;
        for (const StepInput& input : step->inputs)
          inputs.push_back(input.optional ? at::Tensor() : trace.read(model->graph().node(input.node).name));
        if (step->by_row)
          for (at::Tensor& input : inputs) input = input.flatten(0, 1);
        const at::Tensor before = run(*step, *model, inputs, kLength);
        for (size_t id = 0; id < model->weights().specs().size(); ++id) {
          const std::string& name = model->weights().specs()[id].name;
          const bool tied = model->config().tied_unembed && (name == "embed.weight" || name == "unembed.weight");
          if (tied && step->text.starts_with("embed") != (name == "embed.weight")) continue;
          const at::Tensor changed = weight(*model, name), kept = changed.clone();
          changed.mul_(1.5).add_(0.125);
          const bool uses = !at::equal(run(*step, *model, inputs, kLength), before);
          changed.copy_(kept);
          const bool listed = std::count(step->weights.begin(), step->weights.end(), static_cast<WeightId>(id)) > 0;
          CAPTURE(step->text);
          CAPTURE(name);
          CHECK(uses == listed);
        }
        ++steps;
      }
    CHECK(steps > model->graph().nodes().size());
  }
}

TEST_CASE("a weight changed in place counts in every trace of its model") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 2, 5));
    Trace fork = trace.fork();
    fork.set("resid_mid1", at::zeros({}), Region{}.at_axis(1, {3}));
    const at::Tensor before = trace.logits(), edited = fork.logits();
    const at::Tensor changed = weight(*model, "blocks.1.attn.o.weight"), kept = changed.clone();
    trace.reset_work();
    changed.mul_(1.5);
    const at::Tensor after = trace.logits();
    CHECK_FALSE(close(after, before));
    CHECK(close(after, fresh_logits(model, trace)));
    for (const Work& work : trace.work()) {
      CAPTURE(work.node);
      CHECK(model->graph().find(work.node) >= model->graph().find("blocks.1.attn.hook_result"));
    }
    Trace other(model, trace.tokens());
    other.set("resid_mid1", at::zeros({}), Region{}.at_axis(1, {3}));
    CHECK(close(fork.logits(), other.logits()));
    changed.copy_(kept);
    CHECK(close(trace.logits(), before));
    CHECK(close(fork.logits(), edited));
  }
}

TEST_CASE("changes that torch does not count have to be told") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  const at::Tensor before = trace.logits();
  double* values = weight(*model, "blocks.2.mlp.in.weight").data_ptr<double>();
  values[0] += 3;
  CHECK(at::equal(trace.logits(), before));
  model->weights_changed();
  CHECK_FALSE(close(trace.logits(), before));
  CHECK(close(trace.logits(), fresh_logits(model, trace)));
}

TEST_CASE("a hook is called again only for other numbers") {
  const auto model = tiny_llama();
  Trace trace(model, some_tokens(*model, 1, 4), {.keep = KeepValues::kNeeded, .budget_bytes = 1});
  int calls = 0;
  const auto halve = [&](const at::Tensor& value, const HookCall&) {
    ++calls;
    return value * 0.5;
  };
  trace.hook("resid_mid1", halve);
  Trace fork = trace.fork();
  const at::Tensor before = trace.logits();
  weight(*model, "blocks.2.mlp.out.weight").mul_(2);
  CHECK_FALSE(close(trace.logits(), before));
  CHECK(calls == 1);
  const at::Tensor changed = weight(*model, "blocks.0.mlp.out.weight"), kept = changed.clone();
  changed.mul_(2);
  const at::Tensor after = trace.logits();
  CHECK(calls == 2);
  trace.reset_work();
  CHECK(at::equal(fork.logits(), after));
  CHECK(trace.work().empty());
  Trace fresh(model, trace.tokens());
  fresh.hook("resid_mid1", [](const at::Tensor& value, const HookCall&) { return value * 0.5; });
  CHECK(close(after, fresh.logits()));
  changed.copy_(kept);
  fork.logits();
  CHECK(calls == 2);
}

TEST_CASE("a change in place of a value that a weight has changed since is refused") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  trace.edit("resid_mid1", [](const at::Tensor& value) { return value * 2; });
  const at::Tensor before = trace.logits();
  weight(*model, "blocks.2.ln1.bias").add_(1);
  CHECK_NOTHROW(trace.logits());
  const at::Tensor changed = weight(*model, "blocks.0.attn.q.bias"), kept = changed.clone();
  changed.add_(1);
  CHECK_THROWS_WITH_AS(trace.logits(),
                       "blocks.1.hook_resid_mid[:, :, :] was changed in place, starting from a value that depends on "
                       "weight 'blocks.0.attn.q.bias', which has changed since: unset it and make the change again, or "
                       "put it there as a hook, or set it to fixed numbers",
                       OrderError);
  CHECK_NOTHROW(trace.read("resid_pre1"));
  changed.copy_(kept);
  weight(*model, "blocks.2.ln1.bias").sub_(1);
  CHECK(close(trace.logits(), before));
  changed.add_(1);
  trace.truncate(3);
  CHECK_THROWS_AS(trace.logits(), OrderError);
  trace.unset("resid_mid1");
  CHECK(close(trace.logits(), fresh_logits(model, trace)));
}

TEST_CASE("hooks can't change weights") {
  const auto model = tiny_llama();
  const auto change = [&](const at::Tensor& value, const HookCall&) {
    weight(*model, "embed.weight").mul_(1.5);
    return value;
  };
  std::vector<Trace> traces;
  for (int64_t length : {3, 5}) traces.emplace_back(model, some_tokens(*model, 1, length));
  Batch batch(std::move(traces));
  Trace trace = batch.traces()[0].fork();
  trace.hook("z1", change);
  batch.hook("z1", change);
  const std::string message =
      "weight 'embed.weight' was changed by a hook or another thread while a trace was being read, which mixes old and "
      "new: change weights between reads";
  CHECK_THROWS_WITH_AS(trace.logits(), message.c_str(), OrderError);
  CHECK_THROWS_WITH_AS(batch.read("logits"), message.c_str(), OrderError);
  trace.unset("z1");
  CHECK(close(trace.logits(), fresh_logits(model, trace)));
}

TEST_CASE("a weight that another thread changes during a read") {
  const auto model = tiny_gpt2();
  int polls = 0;
  const auto poll = [&] {
    if (++polls == 30) std::thread([&] { weight(*model, "blocks.0.ln1.weight").mul_(2); }).join();
  };
  Trace trace(model, some_tokens(*model, 1, 4), {.poll = poll});
  CHECK_THROWS_AS(trace.logits(), OrderError);
  CHECK(polls > 30);
  CHECK(close(trace.logits(), fresh_logits(model, trace)));
}

TEST_CASE("weights that require grad") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 3));
  const at::Tensor before = trace.logits();
  for (const WeightSpec& spec : model->weights().specs()) weight(*model, spec.name).set_requires_grad(true);
  CHECK(Trace(model, trace.tokens()).logits().requires_grad());
  CHECK(close(Trace(model, trace.tokens()).logits().detach(), before));
  {
    const at::NoGradGuard no_grad;
    CHECK_FALSE(Trace(model, trace.tokens()).logits().requires_grad());
    weight(*model, "blocks.0.ln1.weight").add_(0.5);
  }
  const at::NoGradGuard no_grad;
  CHECK_FALSE(close(trace.logits(), before));
  CHECK(close(trace.logits(), fresh_logits(model, trace)));
}

TEST_CASE("a model in another dtype is another model") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  const at::Tensor changed = weight(*model, "blocks.0.mlp.in.weight");
  changed.mul_(1.5);
  const auto narrow = model->to({at::kBFloat16, at::kCPU});
  CHECK(bool(narrow->weights().dtype() == at::kBFloat16));
  CHECK(at::equal(weight(*narrow, "blocks.0.mlp.in.weight"), changed.to(at::kBFloat16)));
  CHECK(weight(*narrow, "embed.weight").is_same(weight(*narrow, "unembed.weight")));
  const auto has_fast_z = [](const Model& one) {
    return static_cast<bool>(one.graph().node(one.graph().find("z0")).fast.run);
  };
  CHECK(has_fast_z(*model));
  CHECK_FALSE(has_fast_z(*narrow));
  changed.mul_(0);
  CHECK(weight(*narrow, "blocks.0.mlp.in.weight").abs().max().item<double>() > 0);
  const at::Tensor before = trace.logits();
  weight(*narrow, "blocks.0.mlp.out.weight").mul_(0);
  CHECK(at::equal(trace.logits(), before));
  CHECK(&trace.model() == model.get());
  CHECK(model->to({at::kDouble, at::kCPU}) == model);
  CHECK_THROWS_AS(model->to({at::kInt, at::kCPU}), UnsupportedError);
  CHECK_THROWS_AS(model->to({at::kFloat, at::Device("meta")}), UnsupportedError);
  if (!at::globalContext().hasCUDA())
    CHECK_THROWS_WITH_AS(model->to({at::kFloat, at::kCUDA}),
                         "device cuda is not there: this torch or this machine has none; use cpu", UnsupportedError);
}
