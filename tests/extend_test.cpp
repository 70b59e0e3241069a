#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <doctest/doctest.h>

#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/graph/extension.h"
#include "glassformer/trace/batch.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

struct Autoencoder {
  at::Tensor in, out;
  explicit Autoencoder(int64_t width)
      : in(at::randn({width, 9}, at::kDouble)), out(at::randn({9, width}, at::kDouble)) {}
  at::Tensor encode(const at::Tensor& x) const { return at::relu(at::matmul(x, in)); }
  at::Tensor decode(const at::Tensor& acts) const { return at::matmul(acts, out); }
  SpliceSpec onto(const std::string& node, const std::string& name) const {
    return {node, name, [this](const at::Tensor& x) { return encode(x); },
            [this](const at::Tensor& acts) { return decode(acts); }};
  }
};

at::Tensor first_input(const StepCall& call) { return call.inputs[0]; }

}  // namespace

TEST_CASE("a splice changes nothing until something of it is edited") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()})
    for (const char* node : {"resid_post1", "mlp_out0", "attn_out1", "resid_mid2"}) {
      const Autoencoder sae(model->config().d_model);
      const auto spliced = model->extended({{}, {sae.onto(node, "sae")}, {}});
      const at::Tensor tokens = some_tokens(*model, 2, 6);
      Trace plain(model, tokens), trace(spliced, tokens);
      CHECK(at::equal(trace.logits(), plain.logits()));
      CHECK(at::equal(trace.read(node), plain.read(node)));
      trace.set("sae.acts", at::full({}, 0.5, at::kDouble), Region().at("feature", 3).at("pos", {4}));
      const at::Tensor value = plain.read(node), acts = sae.encode(value);
      at::Tensor changed = acts.clone();
      changed.select(1, 4).select(1, 3).fill_(0.5);
      plain.set(node, value + sae.decode(changed) - sae.decode(acts));
      CHECK(close(trace.logits(), plain.logits()));
      CHECK(at::equal(trace.read(node, Positions{{0, 1, 2, 3}}), value.narrow(1, 0, 4)));
    }
}

TEST_CASE("a fork onto an extended model computes nothing again") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    const Autoencoder sae(model->config().d_model);
    const auto spliced = model->extended({{}, {sae.onto("resid_post1", "sae")}, {}});
    Trace trace(model, some_tokens(*model, 1, 6), {.keep = KeepValues::kAll});
    trace.hook("mlp_out0", [](const at::Tensor& value, const HookCall&) { return value * 2; });
    trace.set("resid_post1", at::full({}, 1.0, at::kDouble), Region().at("pos", 2));
    const at::Tensor before = trace.logits();
    Trace fork = trace.fork(spliced);
    CHECK(at::equal(fork.logits(), before));
    CHECK(fork.work().empty());
    CHECK(close(fork.read("sae.acts"), sae.encode(trace.read("resid_post1"))));
    const at::Tensor more = some_tokens(*model, 1, 2);
    trace.append(more);
    fork.append(more);
    CHECK(close(fork.logits(), trace.logits()));
    CHECK_THROWS_AS(trace.fork(tiny_gpt2()), InputError);
  }
}

TEST_CASE("further nodes with weights of their own") {
  const auto model = tiny_llama();
  const at::Tensor probe = at::randn({16, 2}, at::kDouble);
  const auto running_maximum = [](const StepCall& call) {
    std::vector<at::Tensor> rows;
    at::Tensor found = at::full({call.inputs[0].size(0), call.rows.count()}, 0.0, at::kDouble);
    int64_t i = 0;
    for (const int64_t row : call.rows.rows())
      found.select(1, i++).copy_(call.inputs[0].narrow(1, 0, row + 1).flatten(1).amax(1));
    return found;
  };
  const auto with_probe = [&](const StepCall& call) { return at::matmul(call.inputs[0], call.weights.get("probe")); };
  const auto extended =
      model->extended({{{"probe1.hook_out", "batch pos class=2", {{"resid_post1"}}, with_probe, {"probe"}},
                        {"highest", "batch pos", {{"resid_post1", Reach::kUpToRow}}, running_maximum}},
                       {},
                       {{"probe", probe}}});
  CHECK(at::equal(extended->weights().get("probe"), probe));
  CHECK(!model->weights().has("probe"));
  std::vector<Trace> traces;
  for (const int64_t length : {3, 7, 5, 7}) traces.emplace_back(extended, some_tokens(*model, 1, length));
  Batch batch(std::move(traces));
  batch.read("highest");
  for (Trace& trace : batch.traces()) {
    const at::Tensor stream = trace.read("resid_post1");
    CHECK(close(trace.read("probe1.out"), at::matmul(stream, probe)));
    CHECK(at::equal(trace.read("highest"), std::get<0>(stream.amax(2).cummax(1))));
  }
  CHECK_THROWS_AS(
      model->extended({{{"a", "batch pos", {{"b"}}, first_input}, {"b", "batch pos", {{"a"}}, first_input}}, {}, {}}),
      InputError);
  CHECK_THROWS_AS(model->extended({{{"z1", "batch pos", {{"resid_post1"}}, first_input}}, {}, {}}), InputError);
  CHECK_THROWS_AS(model->extended({{{"a", "batch pos", {{"nothing"}}, first_input}}, {}, {}}), NameError);
  CHECK_THROWS_AS(model->extended({{{"a", "batch pos", {{"z1"}}, {}}}, {}, {}}), InputError);
  const auto wrong = model->extended({{{"a", "batch pos", {{"resid_post1"}}, first_input}}, {}, {}});
  Trace trace(wrong, some_tokens(*model, 1, 4));
  CHECK_THROWS_WITH_AS(trace.read("a"), "a: its step returned [1, 4, 16]; expected [1, 4] (batch pos)", ShapeError);
  CHECK(trace.logits().isfinite().all().item<bool>());
}

TEST_CASE("a model of nothing but nodes of one's own") {
  const at::Tensor table = at::randn({7, 4}, at::kDouble), out = at::randn({4, 7}, at::kDouble);
  const auto embed = [](const StepCall& call) { return at::embedding(call.weights.get("E"), call.inputs[0]); };
  const auto attend = [](const StepCall& call) {
    const at::Tensor rows = at::tensor(call.rows.rows(), at::kLong).unsqueeze(1);
    const at::Tensor later = at::arange(call.inputs[1].size(1), at::kLong) > rows;
    const at::Tensor scores = at::matmul(call.inputs[0], call.inputs[1].transpose(1, 2));
    return at::matmul(at::softmax(scores.masked_fill(later, -std::numeric_limits<double>::infinity()), -1),
                      call.inputs[1]);
  };
  const auto unembed = [](const StepCall& call) { return at::matmul(call.inputs[0], call.weights.get("U")); };
  const auto model =
      Model::define({{"hook_embed", "batch pos d=4", {{"hook_tokens"}}, embed, {"E"}, "embed"},
                     {"mixed", "batch pos d=4", {{"embed"}, {"embed", Reach::kUpToRow}}, attend},
                     {"logits", "batch pos d_vocab=7", {{"mixed"}}, unembed, {"U"}}},
                    {{"E", table}, {"U", out}}, {.d_vocab = 7, .n_ctx = 9, .load = {at::kDouble, at::kCPU}});
  const at::Tensor tokens = some_tokens(*model, 2, 6);
  const at::Tensor x = at::embedding(table, tokens);
  const at::Tensor later = at::arange(6, at::kLong) > at::arange(6, at::kLong).unsqueeze(1);
  const at::Tensor scores =
      at::matmul(x, x.transpose(1, 2)).masked_fill(later, -std::numeric_limits<double>::infinity());
  const at::Tensor expected = at::matmul(at::matmul(at::softmax(scores, -1), x), out);
  Trace trace(model, tokens.narrow(1, 0, 4));
  CHECK(close(trace.logits(), expected.narrow(1, 0, 4)));
  trace.reset_work();
  trace.append(tokens.narrow(1, 4, 2));
  CHECK(close(trace.logits(), expected));
  for (const Work& work : trace.work()) CHECK(work.rows == 4);
  CHECK_THROWS_AS(trace.append(some_tokens(*model, 2, 4)), InputError);
}
