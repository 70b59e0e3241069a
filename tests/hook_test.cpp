#include "glassformer/trace/hook.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <doctest/doctest.h>

#include <random>

#include "glassformer/base/errors.h"
#include "glassformer/trace/batch.h"
#include "glassformer/trace/generate.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

at::Tensor halve(const at::Tensor& value, const HookCall&) { return value * 0.5; }

}  // namespace

TEST_CASE("a hook stands where it was put, once for each segment") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 1, 4));
    Trace plain = trace.fork();
    std::vector<std::pair<int64_t, int64_t>> calls;
    trace.hook("resid_pre1", [&](const at::Tensor& value, const HookCall& call) {
      calls.emplace_back(call.begin(), call.end());
      CHECK(at::equal(call.read("resid_post0"), plain.read("resid_post0").narrow(1, call.begin(), value.size(1))));
      return value * 2;
    });
    CHECK(close(trace.read("resid_pre1"), plain.read("resid_pre1") * 2));
    trace.logits();
    const at::Tensor more = some_tokens(*model, 1, 2);
    plain.append(more);
    trace.append(more);
    CHECK(close(trace.read("resid_pre1"), plain.read("resid_pre1") * 2));
    CHECK(calls == std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {4, 6}});
  }
}

TEST_CASE("inside a hook its trace can't be edited, nor read from there on") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  Trace* self = &trace;
  trace.hook("z1", [&](const at::Tensor&, const HookCall& call) { return call.read("attn_out1"); });
  CHECK_THROWS_AS(trace.logits(), OrderError);
  trace.unset("z1");
  trace.hook("z1", [self](const at::Tensor& value, const HookCall&) {
    self->unset("z1");
    return value;
  });
  CHECK_THROWS_AS(trace.logits(), OrderError);
  trace.unset("z1");
  CHECK_NOTHROW(trace.logits());
}

TEST_CASE("an exception in a hook leaves the rest as it is") {
  const auto model = tiny_llama();
  Trace trace(model, some_tokens(*model, 1, 4));
  bool fails = true;
  trace.hook("mlp_out1", [&](const at::Tensor& value, const HookCall&) {
    if (fails) throw std::runtime_error("mine");
    return value * 0;
  });
  CHECK_THROWS_WITH(trace.logits(), "mine");
  fails = false;
  CHECK(trace.read("mlp_out1").abs().max().item<double>() == 0);
}

TEST_CASE("a batch calls its hook once") {
  const auto model = tiny_llama();
  std::vector<Trace> traces;
  for (int64_t length : {3, 5}) traces.emplace_back(model, some_tokens(*model, 1, length));
  Batch batch(std::move(traces));
  Batch plain = batch.fork();
  int calls = 0;
  batch.hook("resid_mid1", [&](const at::Tensor& value, const HookCall&) {
    ++calls;
    CHECK(value.sizes() == at::IntArrayRef({2, 5, 16}));
    return value.flip(0);
  });
  CHECK_THROWS_AS(batch.traces()[0].logits(), UnavailableError);
  const at::Tensor mixed = batch.read("resid_mid1"), before = plain.read("resid_mid1");
  CHECK(calls == 1);
  CHECK(close(mixed[1], before[0]));
  CHECK(close(mixed[0].narrow(0, 2, 3), before[1].narrow(0, 2, 3)));
}

TEST_CASE("hooks of chosen steps of a generation") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 4));
  std::vector<int64_t> begins;
  GenerateOptions options{.max_new_tokens = 4, .stop_tokens = std::vector<int64_t>{}};
  options.hooks.push_back({"resid_pre1",
                           [&](const at::Tensor& value, const HookCall& call) {
                             begins.push_back(call.begin());
                             return value;
                           },
                           {0, 2}});
  generate({&trace}, options);
  CHECK(begins == std::vector<int64_t>{0, 5});
}

// --- Random operations -----------------------------------------------------------------------------------------------

namespace {

struct Put {
  std::string node;
  at::Tensor value;  // Undefined: a hook.
  int64_t position;
};

// A trace of a family, and what a trace of its own needs to come to the same values.
struct Twin {
  Trace trace;
  std::vector<at::Tensor> segments;
  std::vector<Put> puts;
};

void put(Trace& trace, const Put& edit) {
  if (!edit.value.defined()) return trace.hook(edit.node, halve);
  trace.at({edit.position}).set(edit.node, edit.value);
}

at::Tensor fresh_logits(const std::shared_ptr<const Model>& model, const Twin& twin) {
  Trace trace(model, twin.segments.front());
  for (size_t i = 1; i < twin.segments.size(); ++i) trace.append(twin.segments[i]);
  for (const Put& edit : twin.puts) put(trace, edit);
  return trace.logits();
}

}  // namespace

TEST_CASE("random edits, hooks, forks and appends equal a trace of its own") {
  const std::vector<std::string> nodes = {
      "hook_embed", "q0",         "resid_mid0", "resid_post0", "scale1ln1",      "v1",      "z1",
      "mlp_out1",   "resid_pre2", "k2",         "result2",     "normalized2ln2", "pattern1"};
  std::mt19937 random(7);
  const auto below = [&](size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random); };
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    std::vector<Twin> twins;
    for (int step = 0; step < 400; ++step) {
      if (twins.empty() || below(40) == 0) {
        const at::Tensor tokens = some_tokens(*model, 1, 3);
        twins.clear();
        twins.push_back({Trace(model, tokens), {tokens}, {}});
      }
      Twin& twin = twins[below(twins.size())];
      switch (below(7)) {
        case 0: {
          const auto& name = nodes[below(nodes.size() - 1)];  // Not a pattern, which knows the keys of its day only.
          const auto position = static_cast<int64_t>(below(static_cast<size_t>(twin.trace.length())));
          const at::Tensor shape = twin.trace.at({position}).read(name);
          twin.puts.push_back({name, at::rand(shape.sizes(), at::kDouble), position});
          put(twin.trace, twin.puts.back());
          break;
        }
        case 1:
          twin.puts.push_back({nodes[below(nodes.size())], {}, 0});
          put(twin.trace, twin.puts.back());
          break;
        case 2:
          if (!twin.puts.empty()) {
            const std::string name = twin.puts[below(twin.puts.size())].node;
            twin.trace.unset(name);
            std::erase_if(twin.puts, [&](const Put& edit) { return edit.node == name; });
          }
          break;
        case 3:
          if (twins.size() < 6) {
            Twin other{twin.trace.fork(), twin.segments, twin.puts};
            twins.push_back(std::move(other));
          }
          break;
        case 4:
          if (twin.trace.length() < 10) {
            twin.segments.push_back(some_tokens(*model, 1, 1 + static_cast<int64_t>(below(2))));
            twin.trace.append(twin.segments.back());
          }
          break;
        case 5:
          if (twins.size() > 1) twins.erase(twins.begin() + static_cast<std::ptrdiff_t>(below(twins.size())));
          break;
        default:
          CHECK(close(twin.trace.logits(), fresh_logits(model, twin)));
      }
    }
  }
}
