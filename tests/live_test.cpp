#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <doctest/doctest.h>

#include <random>

#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;
using at::indexing::Slice;

namespace {

// What the same change is as numbers put there, in a trace of its own.
at::Tensor logits_with(Trace& trace, const std::string& node, const at::Tensor& value) {
  Trace fresh(trace.model_ptr(), trace.tokens());
  fresh.set(node, value);
  return fresh.logits();
}

}  // namespace

TEST_CASE("a change in place of what was handed out is an edit") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 1, 6));
    Trace plain = trace.fork();
    const at::Tensor before = plain.logits();
    const at::Tensor held = trace.hand_out("resid_pre1");
    held.mul_(2);
    CHECK(close(trace.logits(), logits_with(trace, "resid_pre1", held)));
    held.select(1, 2).zero_();                // Through a view, a second time.
    held.const_data_ptr();                    // Reading is no change.
    held.mutable_data_ptr<double>()[0] += 1;  // As others write: torch doesn't count it.
    CHECK(close(trace.logits(), logits_with(trace, "resid_pre1", held)));
    CHECK(at::equal(plain.logits(), before));
    const at::Tensor window = trace.hand_out("z2", Positions{{1, 4}});
    window.neg_();
    const at::Tensor whole = trace.read("z2");
    CHECK(at::equal(whole.index_select(1, at::arange(1, 5, 3)), window));
    Trace both(model, trace.tokens());
    both.set("resid_pre1", held);
    both.set("z2", window, Region().at("pos", std::vector<int64_t>{1, 4}));
    CHECK(close(trace.logits(), both.logits()));
  }
}

TEST_CASE("an edit below a change in place is refused, and one of a value that is no longer the node's too") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 5));
  const at::Tensor high = trace.hand_out("resid_post1"), low = trace.hand_out("resid_post0");
  high.mul_(2);
  low.mul_(2);  // Both wait: the lower one first, and the upper one was made from another value.
  CHECK_THROWS_AS(trace.collect(), StaleEditError);
  CHECK(close(trace.logits(), logits_with(trace, "resid_post0", low)));
  Trace other(model, trace.tokens());
  const at::Tensor top = other.hand_out("resid_post1");
  top.mul_(2);
  other.logits();
  other.set("resid_post0", at::full({}, 0.5, at::kDouble), Region().at("pos", 1));
  CHECK_THROWS_AS(other.logits(), OrderError);
  other.unset("resid_post1");
  CHECK_NOTHROW(other.logits());
  top.mul_(2);
  CHECK_THROWS_AS(other.logits(), StaleEditError);
  CHECK_NOTHROW(other.logits());
}

TEST_CASE("numbers assigned by index count whatever became of the value") {
  const auto model = tiny_llama();
  const at::Tensor tokens = some_tokens(*model, 2, 6);
  Trace trace(model, tokens.narrow(1, 0, 4)), expected(model, tokens);
  at::Tensor pattern = trace.hand_out("pattern1");
  at::Tensor rows = trace.hand_out("z1", Positions{{0, 3}});
  trace.append(tokens.narrow(1, 4, 2));
  pattern.index_put_({Slice(), 0, Slice(), 1}, 0.25);
  CHECK(trace.assigned(pattern, Region().at_axis(1, {0}, true).at_axis(3, {-3}, true), at::full({}, 0.25, at::kDouble),
                       {}));
  rows.index_put_({1, 1}, -0.5);
  CHECK(
      trace.assigned(rows, Region().at_axis(0, {1}, true).at_axis(1, {-1}, true), at::full({}, -0.5, at::kDouble), {}));
  CHECK(!trace.assigned(at::rand({3}), Region(), at::rand({3}), {}));
  const Region keys = Region().at_axis(1, {0}).at_axis(2, {0, 1, 2, 3}).at_axis(3, {1});
  expected.set("pattern1", at::full({}, 0.25, at::kDouble), keys);
  expected.set("z1", at::full({}, -0.5, at::kDouble), Region().at("batch", 1).at("pos", 3));
  CHECK(close(trace.logits(), expected.logits()));
  trace.truncate(3);
  CHECK_THROWS_AS(trace.assigned(rows, Region().at_axis(1, {1}), rows.narrow(1, 1, 1), {}), InputError);
}

TEST_CASE("values with a graph are changed in place on the graph") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 5));
  trace.require_grad();
  const at::Tensor early = trace.hand_out("resid_pre1"), held = trace.hand_out("resid_mid1");
  held.mul_(3);
  Trace numbers(model, trace.tokens());
  numbers.set("resid_mid1", held.detach());
  CHECK(close(trace.logits().detach(), numbers.logits()));
  trace.logits().sum().backward();
  CHECK(early.grad().abs().max().item<double>() > 0);
}

// Many changes in place, in any order of layers and windows, dropped values and forks among them. What the trace has
// must always be what numbers put there as a whole have.
TEST_CASE("random changes of handed out values give what their numbers give") {
  std::mt19937_64 random(7);
  const auto below = [&](size_t limit) { return static_cast<int64_t>(random() % limit); };
  const std::vector<std::string> nodes = {"embed", "resid_pre0", "z0", "attn_out0",  "k1",
                                          "post1", "mlp_out1",   "v2", "resid_post2"};
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    for (int round = 0; round < 12; ++round) {
      Trace trace(model, some_tokens(*model, 1 + below(2), 4 + below(3)));
      std::vector<std::pair<std::string, at::Tensor>> held;
      for (int change = 0; change < 12; ++change) {
        const std::string node = nodes[static_cast<size_t>(below(nodes.size()))];
        Positions positions;
        if (below(3) == 0) positions = {{below(2), 2 + below(2)}};
        const at::Tensor value = trace.hand_out(node, positions);
        value.narrow(1, 0, 1 + below(static_cast<size_t>(value.size(1)))).mul_(below(2) == 0 ? 0.5 : 1.25);
        if (below(2) == 0) held.emplace_back(node, value);  // Else let go of before it was collected.
        if (below(4) == 0) trace = trace.fork();
        try {
          const at::Tensor found = trace.logits();
          Trace fresh(model, trace.tokens());
          for (const std::string& edited : trace.edited()) fresh.set(edited, trace.read(edited));
          CHECK(close(found, fresh.logits()));
        } catch (const OrderError&) {  // An edit below an earlier one.
          trace = Trace(model, trace.tokens());
        } catch (const StaleEditError&) {
          trace = Trace(model, trace.tokens());
        }
        if (below(3) == 0) held.clear();
      }
    }
  }
}
