#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/base/errors.h"
#include "glassformer/trace/batch.h"
#include "glassformer/trace/generate.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

Past first_of(const Past& past, int64_t length) {
  Past first;
  for (const LayerPast& layer : past)
    first.push_back({layer.k.narrow(1, 0, length).clone(), layer.v.narrow(1, 0, length).clone()});
  return first;
}

}  // namespace

TEST_CASE("a trace that begins at a node goes on as the one that its value was read from") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    Trace trace(model, some_tokens(*model, 2, 14));
    const at::Tensor value = trace.read("resid_pre1");
    Trace begun = Trace::from_node(model, "resid_pre1", value.narrow(1, 0, 5));
    begun.logits();
    begun.append(value.narrow(1, 5, 9));
    CHECK(begun.begin_node() == "blocks.1.hook_resid_pre");
    CHECK(begun.begin() == 0);
    CHECK(begun.n_segments() == 2);
    CHECK(close(begun.logits(), trace.logits()));
    CHECK(at::equal(begun.read("resid_pre1"), value));
    for (const Work& work : begun.work()) CHECK(!work.node.starts_with("blocks.0"));
    begun.truncate(6);
    begun.append(value.narrow(1, 6, 1));
    CHECK(close(begun.logits(), Trace::from_node(model, "resid_pre1", value.narrow(1, 0, 7)).logits()));
    Trace ordinary(model, trace.tokens());
    Trace* both[] = {&ordinary, &begun};
    const std::vector<at::Tensor> last = read_all(both, "logits", Positions{{-1}});
    CHECK(close(last[0].squeeze(1), trace.logits_at(-1)));
    CHECK(close(last[1].squeeze(1), begun.logits_at(-1)));
  }
}

TEST_CASE("what can't be had is named, however it is asked for") {
  const auto model = tiny_llama();
  Trace trace = Trace::from_node(model, "resid_pre1", at::randn({4, 16}, at::kDouble));
  const at::Tensor zero = at::zeros({}, at::kDouble);
  const HookFunction same = [](const at::Tensor& value, const HookCall&) { return value; };
  CHECK_THROWS_AS(trace.read("z0"), UnavailableError);
  CHECK_THROWS_AS(trace.tokens(), UnavailableError);
  CHECK_THROWS_AS(trace.past(), UnavailableError);
  CHECK_THROWS_AS(trace.set("z0", zero), UnavailableError);
  CHECK_THROWS_AS(trace.hook("z0", same), UnavailableError);
  CHECK_THROWS_AS(trace.edit("z0", [](const at::Tensor& value) { return value; }), UnavailableError);
  CHECK_THROWS_AS(trace.explain("z0"), UnavailableError);
  CHECK_THROWS_AS(Generation({&trace}, {}), UnavailableError);
  CHECK_THROWS_WITH_AS(trace.append(some_tokens(*model, 1, 2)),
                       "the trace begins at blocks.1.hook_resid_pre and takes its values ('batch pos d_model'), no "
                       "tokens; found Long",
                       InputError);
  CHECK_THROWS_AS(trace.append(at::Tensor()), InputError);
  CHECK(trace.edited().empty());
  std::vector<Trace> one;
  one.push_back(trace.fork());
  Batch batch(std::move(one));
  CHECK_THROWS_AS(batch.hook("z0", same), UnavailableError);
  CHECK_THROWS_AS(batch.read("z0"), UnavailableError);
  CHECK(close(batch.read("z1"), trace.read("z1")));
}

TEST_CASE("a past and what follows it equal one pass, also where rotary angles depend on the length") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    const at::Tensor tokens = some_tokens(*model, 2, 15);
    Trace whole(model, tokens);
    Trace trace(model, tokens.narrow(1, 4, 11), {.past = first_of(whole.past(), 4)});
    CHECK(trace.begin() == 4);
    CHECK(trace.length() == 15);
    CHECK(at::equal(trace.tokens(), tokens.narrow(1, 4, 11)));
    for (const char* node : {"logits", "resid_post1", "z2", "q2"})
      CHECK(close(trace.read(node), whole.read(node).narrow(1, 4, 11)));
    for (const char* node : {"k2", "v1"}) CHECK(close(trace.read(node), whole.read(node)));
    CHECK(close(trace.read("pattern2"), whole.read("pattern2").narrow(2, 4, 11)));
    const Past all = trace.past();
    for (size_t layer = 0; layer < all.size(); ++layer) CHECK(close(all[layer].v, whole.past()[layer].v));
    CHECK_THROWS_AS(trace.read("resid_post1", Positions{{3}}), UnavailableError);
    CHECK_THROWS_AS(trace.set("resid_post1", at::zeros({}, at::kDouble), Region().at("pos", {3, 4})), UnavailableError);
    CHECK_THROWS_AS(trace.truncate(4), InputError);
  }
}

TEST_CASE("regions, hooks and windows of a trace with a past count from its first position") {
  const auto model = tiny_llama();
  const at::Tensor tokens = some_tokens(*model, 1, 9);
  Trace whole(model, tokens);
  Trace trace(model, tokens.narrow(1, 3, 6), {.past = first_of(whole.past(), 3)});
  const at::Tensor value = at::randn({1, 6, 16}, at::kDouble);
  trace.set("resid_pre2", value);
  CHECK(at::equal(trace.read("resid_pre2"), value));
  trace.set("resid_pre2", at::zeros({}, at::kDouble));
  CHECK(trace.edited().size() == 1);
  trace.unset("resid_pre2");
  std::vector<int64_t> seen;
  trace.hook("v1", [&](const at::Tensor& given, const HookCall& call) {
    seen.insert(seen.end(), {call.begin(), call.end(), given.size(1)});
    return at::Tensor();
  });
  trace.hook("z1", [&](const at::Tensor& given, const HookCall& call) {
    seen.insert(seen.end(), {call.begin(), call.end(), given.size(1)});
    return at::Tensor();
  });
  CHECK(close(trace.logits(), whole.logits().narrow(1, 3, 6)));
  CHECK(seen == std::vector<int64_t>{0, 9, 9, 3, 9, 6});
  trace.at({-1, 3}).set("z1", at::full({}, 0.5, at::kDouble));
  whole.at({8, 3}).set("z1", at::full({}, 0.5, at::kDouble));
  CHECK(close(trace.logits(), whole.logits().narrow(1, 3, 6)));
  CHECK_THROWS_AS(trace.at({1}).read("z1"), UnavailableError);
  CHECK_THROWS_WITH_AS(trace.at({4, 5, 4}).set("z1", at::zeros({}, at::kDouble)),
                       "blocks.1.attn.hook_z: index 4 of axis 'pos' is given twice", InputError);
}

TEST_CASE("windows whose positions are gone say so") {
  const auto model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 8));
  Window window = trace.at({-1, 2});
  trace.truncate(5);
  CHECK_THROWS_AS(window.read("z1"), InputError);
  CHECK_THROWS_AS(window.set("z1", at::zeros({}, at::kDouble)), InputError);
}

TEST_CASE("a mask for each query lets queries look ahead, and edits of later keys change earlier positions") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    const at::Tensor tokens = some_tokens(*model, 1, 6);
    Trace all(model, tokens, {.attention_mask = at::ones({1, 6, 6}, at::kBool)});
    Trace causal(model, tokens, {.attention_mask = at::ones({1, 6, 6}, at::kBool).tril()});
    CHECK(close(causal.logits(), Trace(model, tokens).logits()));
    const at::Tensor before = all.logits(), pattern = all.read("pattern1");
    CHECK(pattern.select(2, 0).min().item<double>() > 0);
    CHECK(close(pattern.sum(3), at::ones({1, model->config().n_heads, 6}, at::kDouble)));
    Trace fork = all.fork();
    fork.set("resid_pre1", at::full({}, 0.5, at::kDouble), Region().at("pos", 5));
    const at::Tensor value = fork.read("resid_pre1");
    CHECK((fork.logits() - before).select(1, 0).abs().max().item<double>() > 1e-6);
    Trace again = Trace::from_node(model, "resid_pre1", value, {.attention_mask = at::ones({1, 6, 6}, at::kBool)});
    CHECK(close(fork.logits(), again.logits()));
    Trace weighted = all.fork();
    weighted.set("pattern2", at::full({}, 0.5, at::kDouble), Region().at("query_pos", 4));
    weighted.reset_work();
    weighted.read("z2");
    CHECK(weighted.work().back().rows == 2);  // The edited query and what comes after it; no other looks at a pattern.
    all.append(some_tokens(*model, 1, 2));
    CHECK(at::equal(all.read("logits").narrow(1, 0, 6), before));
    CHECK(all.read("pattern1").select(2, 6).select(2, 7).abs().max().item<double>() == 0);
  }
}

TEST_CASE("wrong beginnings are named") {
  const auto model = tiny_llama();
  const at::Tensor tokens = some_tokens(*model, 1, 4), value = at::randn({1, 4, 16}, at::kDouble);
  const Past past = Trace(model, tokens).past();
  CHECK_THROWS_AS(Trace::from_node(model, "pattern1", value), InputError);
  CHECK_THROWS_AS(Trace::from_node(model, "hook_tokens", value), InputError);
  CHECK_THROWS_AS(Trace::from_node(model, "nothing", value), NameError);
  CHECK_THROWS_AS(Trace::from_node(model, "resid_pre1", value.narrow(2, 0, 3)), ShapeError);
  CHECK_THROWS_AS(Trace::from_node(model, "resid_pre1", value, {.past = past}), InputError);
  CHECK_THROWS_AS(Trace(model, tokens, {.past = {past[0]}}), ShapeError);
  CHECK_THROWS_AS(Trace(model, at::cat({tokens, tokens}), {.past = past}), ShapeError);
  CHECK_THROWS_AS(Trace(model, tokens, {.attention_mask = at::ones({1, 4, 5})}), ShapeError);
  CHECK_THROWS_AS(Trace(model, tokens, {.attention_mask = at::full({1, 4}, -1e9)}), InputError);
  std::vector<Trace> traces;
  traces.emplace_back(model, tokens, TraceOptions{.past = past});
  CHECK_THROWS_AS(Batch(std::move(traces)), UnsupportedError);
}
