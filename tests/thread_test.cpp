#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <doctest/doctest.h>

#include <atomic>
#include <latch>
#include <thread>

#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

// What many operations on a trace come to; the same on every thread, to rounding.
at::Tensor everything(const std::shared_ptr<const Model>& model, const at::Tensor& tokens) {
  Trace trace(model, tokens, {.keep = KeepValues::kBudget, .budget_bytes = 1});
  trace.hook("resid_post0", [](const at::Tensor& value, const HookCall&) { return value * 1.5; });
  Trace fork = trace.fork();
  fork.set("z1", tokens.new_zeros({}, at::kDouble), Region().at("head", {1}));
  const at::Tensor gradient = [&] {
    Trace learned = fork.fork();
    learned.require_grad();
    return learned.grad(learned.logits().select(-1, 3).sum(), {"resid_pre1"}).front();
  }();
  trace.append(tokens.narrow(1, 0, 2));
  Trace* both[] = {&trace, &fork};
  const std::vector<at::Tensor> logits = read_all(both, "logits", Positions{{-1}});
  return at::cat({gradient.flatten(), logits[0].flatten(), logits[1].flatten()});
}

}  // namespace

TEST_CASE("threads with traces of one model") {
  const auto model = tiny_llama();  // Its weights are loaded by whoever comes first.
  const at::Tensor tokens = some_tokens(*model, 1, 5);
  constexpr size_t kThreads = 4;
  std::vector<at::Tensor> found(kThreads);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      for (int turn = 0; turn < 5; ++turn) found[i] = everything(model, tokens);
    });
  for (std::thread& thread : threads) thread.join();
  // Not bit for bit: the BLAS rounds by where its operands lie in memory, on one thread alone too.
  const at::Tensor alone = everything(model, tokens);
  for (const at::Tensor& each : found) CHECK(close(each, alone));
}

TEST_CASE("a family belongs to one thread at a time; its traces may end on any") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  const at::Tensor plain = trace.fork().read("resid_post2");
  std::vector<Trace> forks;
  for (int i = 0; i < 20; ++i) {
    forks.push_back(trace.fork());
    forks.back().set("resid_pre1", plain * i);
    forks.back().logits();
  }
  std::latch inside(1), done(1);
  trace.hook("resid_pre1", [&](const at::Tensor& value, const HookCall&) {
    inside.count_down();
    done.wait();
    return value;
  });
  std::thread reader([&] { trace.logits(); });
  inside.wait();
  CHECK_THROWS_AS(forks.front().logits(), OrderError);
  CHECK_THROWS_AS(trace.fork(), OrderError);
  CHECK_THROWS_AS(trace.set("z0", plain), OrderError);
  forks.clear();
  done.count_down();
  reader.join();
  CHECK(at::equal(trace.read("resid_post2"), plain));
}
