#include "glassformer/analysis/patching.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include "glassformer/base/errors.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

using ModelPointer = std::shared_ptr<const Model>;

// What the model says with this one patch, on a trace that knows of no other.
at::Tensor alone(const ModelPointer& model, const at::Tensor& tokens, const Patch& patch, const Positions& positions) {
  Trace trace(model, tokens);
  trace.set(patch.node, patch.value, patch.region);
  return trace.read("logits", positions);
}

Patch of_head(Trace& clean, const std::string& node, int64_t head, int64_t pos) {
  return {node, clean.read(node).select(1, pos).select(1, head), Region().at("pos", pos).at("head", head)};
}

// Of every kind: whole nodes, positions, heads, keys, single numbers, and one that changes nothing.
std::vector<Patch> some_patches(Trace& clean, Trace& corrupted) {
  const at::Tensor pattern = clean.read("pattern1"), mid = clean.read("resid_mid2");
  std::vector<Patch> patches = {{"blocks.0.hook_resid_pre", clean.read("resid_pre0"), {}},
                                {"resid_pre2", clean.read("resid_pre2").slice(1, 3, 4), Region().at("pos", {3})},
                                {"mlp_out1", at::zeros({}, at::kDouble), Region().at("pos", {0, -1})},
                                {"pattern1", pattern.select(1, 2), Region().at("head", 2)},
                                {"pattern1", pattern.slice(2, 4, 5), Region().at("query_pos", {4})},
                                {"resid_mid2", mid, Region::where(mid > 0.5)},
                                {"resid_post1", corrupted.read("resid_post1"), {}},
                                {"ln_final.hook_normalized", clean.read("ln_final.hook_normalized"), {}}};
  for (int64_t layer : {2, 0, 1})
    for (int64_t pos : {6, 0, 3}) patches.push_back(of_head(clean, str("blocks.", layer, ".attn.hook_z"), 1, pos));
  return patches;
}

}  // namespace

TEST_CASE("a sweep gives what each patch gives by itself") {
  for (const ModelPointer& model : {tiny_gpt2(), tiny_llama()}) {
    const at::Tensor tokens = some_tokens(*model, 2, 7);
    Trace clean(model, some_tokens(*model, 2, 7)), corrupted(model, tokens);
    const std::vector<Patch> patches = some_patches(clean, corrupted);
    const auto n_runs = static_cast<int64_t>(patches.size());
    // What is asked for: the same each time, as foretold or not; and something else in each run.
    const std::vector<Positions> wanted = {std::nullopt, Positions{{-1}}, Positions{{5, 2}}};
    for (const std::optional<Positions>& foretold :
         {std::optional<Positions>(), std::optional<Positions>(Positions{{-1}}), std::optional<Positions>(Positions{})})
      for (size_t turn = 0; turn <= wanted.size(); ++turn) {
        int64_t n_taken = 0;
        const auto take = [&](int64_t i, const std::shared_ptr<PatchedRun>& run) {
          CHECK(i == n_taken++);
          const Positions& positions = wanted[turn < wanted.size() ? turn : static_cast<size_t>(i) % wanted.size()];
          const Patch& patch = patches[static_cast<size_t>(i)];
          CHECK_MESSAGE(close(run->logits(positions), alone(model, tokens, patch, positions)), patch.node);
        };
        sweep_patches(
            corrupted, n_runs, [&](int64_t i) { return patches[static_cast<size_t>(i)]; }, take, foretold);
        CHECK(n_taken == n_runs);
      }
  }
}

TEST_CASE("patches that are too many to be computed at once") {
  const ModelPointer model = tiny_gpt2();
  const at::Tensor tokens = some_tokens(*model, 3, 40);
  Trace clean(model, some_tokens(*model, 3, 40)), corrupted(model, tokens);
  const auto patch = [&](int64_t i) {
    return of_head(clean, str("blocks.", i % 3, ".attn.hook_z"), i / 3 % 3, i / 9 % 40);
  };
  std::vector<std::shared_ptr<PatchedRun>> runs;
  const auto take = [&](int64_t, const std::shared_ptr<PatchedRun>& run) {
    run->logits(Positions{{-1}});
    runs.push_back(run);
  };
  sweep_patches(corrupted, 3 * 3 * 40, patch, take);
  REQUIRE(runs.size() == 360);
  for (int64_t i = 0; i < 360; i += 7) {
    PatchedRun& run = *runs[static_cast<size_t>(i)];
    CHECK(close(run.logits(Positions{{-1}}), alone(model, tokens, patch(i), Positions{{-1}})));
    CHECK(close(run.logits(), alone(model, tokens, patch(i), std::nullopt)));  // Runs live on behind the sweep.
  }
}

TEST_CASE("a sweep leaves its trace as it is, and starts from the edits that it has") {
  const ModelPointer model = tiny_gpt2();
  const at::Tensor tokens = some_tokens(*model, 1, 6), added = at::randn({1, 6, 12}, at::kDouble);
  Trace trace(model, tokens), expected(model, tokens);
  for (Trace* each : {&trace, &expected}) {
    each->set("resid_mid0", added);
    each->hook("mlp_out1", [](const at::Tensor& value, const HookCall&) { return value * 2; });
  }
  const at::Tensor before = trace.logits();
  expected.set("z2", at::zeros({}, at::kDouble), Region().at("head", 0));
  at::Tensor value = at::zeros({}, at::kDouble).requires_grad_();
  const auto take = [&](int64_t, const std::shared_ptr<PatchedRun>& run) {
    CHECK(close(run->logits(), expected.logits()));
    CHECK(!run->logits().requires_grad());
  };
  sweep_patches(
      trace, 1,
      [&](int64_t) {
        return Patch{"z2", value, Region().at("head", 0)};
      },
      take);
  CHECK(trace.logits().equal(before));
  CHECK(trace.edited() == std::vector<std::string>{"blocks.0.hook_resid_mid", "blocks.1.hook_mlp_out"});
}

TEST_CASE("what lies before a patch is not computed again") {
  const ModelPointer model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 10));
  trace.logits();
  trace.reset_work();
  const auto patch = [](int64_t i) {
    return Patch{"resid_pre1", at::ones({12}, at::kDouble), Region().at("pos", 9 - i)};
  };
  const auto take = [](int64_t, const std::shared_ptr<PatchedRun>& run) { run->logits(Positions{{-1}}); };
  sweep_patches(trace, 3, patch, take, Positions{{-1}});
  int64_t rows = 0;
  for (const Work& work : trace.work()) {
    CHECK_MESSAGE(!work.node.starts_with("blocks.0."), work.node);
    if (work.node == "blocks.1.hook_mlp_out") rows = work.rows;
  }
  CHECK(rows == 1 + 2 + 3);
}

TEST_CASE("a sweep refuses what a trace refuses, and can be stopped") {
  const ModelPointer model = tiny_gpt2();
  const at::Tensor tokens = some_tokens(*model, 2, 6), one = at::ones({}, at::kDouble);
  Trace trace(model, tokens);
  const auto never = [](int64_t, const std::shared_ptr<PatchedRun>&) { FAIL("a run with a patch that can't be"); };
  const auto sweep = [&](const Patch& patch) {
    sweep_patches(
        trace, 1, [&](int64_t) { return patch; }, never);
  };
  CHECK_THROWS_AS(sweep({"resid_pri1", one, {}}), NameError);
  CHECK_THROWS_AS(sweep({"resid_pre3", one, {}}), NameError);
  CHECK_THROWS_AS(sweep({"resid_pre1", at::ones({2, 5, 12}, at::kDouble), {}}), ShapeError);
  CHECK_THROWS_AS(sweep({"z1", at::ones({5}, at::kDouble), Region().at("head", 1)}), ShapeError);
  CHECK_THROWS_AS(sweep({"resid_pre1", one, Region().at("pos", 6)}), InputError);
  CHECK_THROWS_AS(sweep({"resid_pre1", one, Region().at("head", 0)}), InputError);
  const auto patch = [&](int64_t) { return Patch{"resid_pre1", one, {}}; };
  const auto beyond = [](int64_t, const std::shared_ptr<PatchedRun>& run) { run->logits(Positions{{6}}); };
  CHECK_THROWS_AS(sweep_patches(trace, 1, patch, beyond), InputError);
  CHECK_THROWS_AS(sweep_patches(trace, 1, patch, never, Positions{{6}}), InputError);
  int64_t n_taken = 0;
  const auto stop = [&](int64_t, const std::shared_ptr<PatchedRun>&) {
    if (++n_taken == 2) throw std::runtime_error("enough");
  };
  CHECK_THROWS_AS(sweep_patches(trace, 5, patch, stop), std::runtime_error);
  CHECK(n_taken == 2);
  CHECK(close(trace.logits(), Trace(model, tokens).logits()));
  sweep_patches(trace, 0, patch, never);
}
