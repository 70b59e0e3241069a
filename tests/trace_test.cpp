#include "glassformer/trace/trace.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <doctest/doctest.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/batch.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

int64_t rows_of(const Trace& trace, const std::string& node) {
  for (const Work& work : trace.work())
    if (work.node == node) return work.rows;
  return 0;
}

}  // namespace

TEST_CASE("reading computes only ancestors") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 6));
  trace.read("resid_post1");
  for (const Work& work : trace.work()) CHECK(!work.node.starts_with("blocks.2"));
  CHECK(rows_of(trace, "blocks.1.hook_mlp_out") == 6);
}

TEST_CASE("demand is narrow: the last logits need one row of the last block") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 1, 6));
    trace.logits_at(-1);
    CHECK(rows_of(trace, "blocks.2.hook_mlp_out") == 1);
    CHECK(rows_of(trace, "blocks.2.attn.hook_k") == 6);
    CHECK(rows_of(trace, "unembed.hook_out") == 1);
  }
}

TEST_CASE("staleness is by position and layer") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 1, 8));
    trace.logits();
    Trace fork = trace.fork();
    fork.set("resid_pre1", at::full({}, 2.0, at::kDouble), Region().at("pos", 5));
    fork.reset_work();
    const at::Tensor changed = fork.logits(), before = trace.logits();
    CHECK(rows_of(fork, "blocks.0.hook_mlp_out") == 0);
    CHECK(rows_of(fork, "blocks.1.hook_mlp_out") == 3);
    CHECK(at::equal(changed.narrow(1, 0, 5), before.narrow(1, 0, 5)));
    CHECK((changed - before).narrow(1, 5, 3).abs().min().item<double>() > 0);
  }
}

TEST_CASE("an overlay bitwise equal to the present value makes nothing stale") {
  const auto model = tiny_llama();
  Trace trace(model, some_tokens(*model, 2, 7));
  const at::Tensor logits = trace.logits();
  for (const Node& node : model->graph().nodes()) {
    Trace fork = trace.fork();
    fork.set(node.name, trace.read(node.name));
    fork.reset_work();
    CHECK_MESSAGE(at::equal(fork.logits(), logits), node.name);
    CHECK_MESSAGE(rows_of(fork, "logits") == 0, node.name);
  }
}

TEST_CASE("append equals one pass, also where rotary angles depend on the length") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    const at::Tensor tokens = some_tokens(*model, 2, 12);
    Trace whole(model, tokens), grown(model, tokens.narrow(1, 0, 4));
    grown.logits();
    for (int64_t i = 4; i < 12; ++i) {
      grown.append(tokens.narrow(1, i, 1));
      if (i % 2 == 0) grown.logits_at(-1);
    }
    grown.reset_work();
    CHECK(close(grown.logits(), whole.logits()));
    CHECK(close(grown.read("pattern1"), whole.read("pattern1")));
    CHECK(close(grown.read("resid_mid2"), whole.read("resid_mid2")));
  }
}

TEST_CASE("forks that append different tokens share the prompt and nothing after it") {
  const auto model = tiny_gpt2();
  const at::Tensor tokens = some_tokens(*model, 1, 9);
  Trace first(model, tokens.narrow(1, 0, 5));
  first.logits();
  Trace second = first.fork(), third = second.fork();
  first.append(tokens.narrow(1, 5, 2));
  second.append(tokens.narrow(1, 7, 2));
  Trace fourth = second.fork();
  fourth.append(tokens.narrow(1, 5, 2));
  second.append(tokens.narrow(1, 0, 1));
  const auto fresh = [&](Trace& trace) { return Trace(model, trace.tokens()).logits(); };
  for (Trace* trace : {&first, &second, &third, &fourth}) CHECK(close(trace->logits(), fresh(*trace)));
  CHECK(at::equal(second.tokens().narrow(1, 5, 2), tokens.narrow(1, 7, 2)));
}

TEST_CASE("a pattern that sees later keys makes its layer non-causal") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 6));
  const at::Tensor uniform = at::full({6, 6}, 1.0 / 6, at::kDouble);
  trace.set("pattern1", uniform);
  const at::Tensor v = trace.read("v1");  // batch pos head d_head
  CHECK(close(trace.read("z1"), v.mean(1, true).expand({1, 6, 3, 4})));
  Trace fork = trace.fork();
  trace.logits();
  fork.set("resid_pre1", at::full({}, 1.0, at::kDouble), Region().at("pos", 5));
  CHECK(close(fork.read("z1"), fork.read("v1").mean(1, true).expand({1, 6, 3, 4})));
  CHECK(!close(fork.read("z1"), trace.read("z1")));
}

TEST_CASE("open and fused attention and norms agree") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 2, 8));
    Trace open = trace.fork();
    for (const char* node : {"pattern1", "result1", "ln1.hook_normalized", "k_input0", "scores2"}) {
      const std::string name = std::string(node) == "ln1.hook_normalized" ? "blocks.2.ln1.hook_normalized"
                               : std::string(node) == "scores2"           ? "blocks.2.attn.hook_attn_scores"
                                                                          : node;
      const at::Tensor value = trace.read(name);
      open.set(name, value * (1 + 1e-13));  // Different in bits, equal to rounding.
    }
    CHECK((open.logits() - trace.logits()).abs().max().item<double>() < 1e-10);
  }
}

TEST_CASE("read_all gives each trace what it gives alone") {
  const auto model = tiny_llama();
  std::vector<Trace> traces;
  for (int64_t length : {3, 7, 5}) traces.emplace_back(model, some_tokens(*model, 1, length));
  for (int64_t layer = 0; layer < 3; ++layer) {
    traces.push_back(traces[1].fork());
    traces.back().set(str("z", layer), at::randn({6}, at::kDouble), Region().at("head", 1).at("pos", layer + 2));
  }
  std::vector<Trace*> pointers;
  std::vector<at::Tensor> alone;
  for (Trace& trace : traces) {
    pointers.push_back(&trace);
    Trace fresh(model, trace.tokens());
    alone.push_back(fresh.logits());
  }
  const std::vector<at::Tensor> together = read_all(pointers, "logits");
  for (size_t i = 0; i < 3; ++i) CHECK(close(together[i], alone[i]));
  for (size_t i = 3; i < 6; ++i) {
    const auto first = static_cast<int64_t>(i - 1);
    CHECK(at::equal(together[i].narrow(1, 0, first), together[1].narrow(1, 0, first)));
    CHECK(close(traces[i].fork().logits(), together[i]));
    CHECK(!close(together[i], together[1]));
  }
}

TEST_CASE("what is kept changes no number") {
  const auto model = tiny_llama();
  const at::Tensor tokens = some_tokens(*model, 1, 9);
  Trace expected(model, tokens);
  for (const KeepValues keep : {KeepValues::kAll, KeepValues::kNeeded, KeepValues::kBudget}) {
    Trace trace(model, tokens, {.keep = keep, .budget_bytes = 1000});
    for (const char* node : {"logits", "resid_mid1", "pattern0", "post2", "logits"})
      CHECK(at::equal(trace.read(node), expected.read(node)));
  }
}

TEST_CASE("edits hold in any order of layers, and unset undoes them") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 6));
  const at::Tensor before = trace.logits(), low = at::randn({12}, at::kDouble), high = at::randn({12}, at::kDouble);
  Trace up = trace.fork(), down = trace.fork();
  up.set("resid_pre0", low, Region().at("pos", 2));
  up.set("attn_out2", high, Region().at("pos", 4));
  down.set("attn_out2", high, Region().at("pos", 4));
  down.read("logits");
  down.set("resid_pre0", low, Region().at("pos", 2));
  CHECK(close(up.logits(), down.logits()));
  down.unset("resid_pre0");
  down.unset("attn_out2");
  CHECK(at::equal(down.logits(), before));
}

TEST_CASE("windows and batches read and set what they say") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 6));
  const at::Tensor whole = trace.read("z1");
  CHECK(at::equal(trace.at({4, -6}).read("z1"), whole.index_select(1, at::arange(0, 5, 4).flip(0))));
  Trace fork = trace.fork();
  fork.at({1, 3}).set("z1", at::full({}, 7.0, at::kDouble));
  CHECK(fork.read("z1", Positions{{1, 3}}).eq(7).all().item<bool>());
  CHECK(at::equal(fork.read("z1", Positions{{0, 2, 4, 5}}), trace.read("z1", Positions{{0, 2, 4, 5}})));

  std::vector<Trace> traces;
  traces.emplace_back(model, some_tokens(*model, 1, 3));
  traces.push_back(trace.fork());
  Batch batch(std::move(traces));
  CHECK(at::equal(batch.read("z1").narrow(0, 1, 1), whole));
  CHECK(batch.mask().sum().item<int64_t>() == 9);
  batch.set("z1", at::full({}, 5.0, at::kDouble), Region().at("pos", 4));
  CHECK(batch.traces()[0].read("z1", Positions{{1}}).eq(5).all().item<bool>());
  const at::Tensor untouched = Trace(model, batch.traces()[0].tokens()).read("z1", Positions{{0}});
  CHECK(close(batch.traces()[0].read("z1", Positions{{0}}), untouched));
}

TEST_CASE("wrong input is named") {
  const auto model = tiny_gpt2();
  const auto tokens = [](std::vector<int64_t> ids) { return at::tensor(ids, at::kLong); };
  CHECK_THROWS_WITH_AS(Trace(model, tokens({1, 29})), "token 29 is outside the vocabulary of 29", InputError);
  CHECK_THROWS_WITH_AS(Trace(model, at::arange(0)), "the prompt has no tokens", InputError);
  CHECK_THROWS_AS(Trace(model, at::arange(41) % 20), InputError);
  CHECK_THROWS_AS(Trace(model, at::randn({3})), InputError);
  Trace trace(model, tokens({1, 2, 3}));
  CHECK_THROWS_WITH_AS(trace.read("resid_pra1"),
                       "no node is called 'resid_pra1'; nearest: resid_pre1, resid_pre0, resid_pre2", NameError);
  CHECK_THROWS_AS(trace.set("z1", at::randn({5})), ShapeError);
  CHECK_THROWS_AS(trace.set("z1", at::randn({1, 1, 1, 1, 4})), ShapeError);
  CHECK_THROWS_AS(trace.set("z1", at::randn({4}), Region().at("d_model", 1)), InputError);
  CHECK_THROWS_AS(trace.set("z1", at::randn({4}), Region().at("head", 3)), InputError);
  CHECK_THROWS_AS(trace.read("z1", Positions{{3}}), InputError);
  CHECK(trace.edited().empty());
}
