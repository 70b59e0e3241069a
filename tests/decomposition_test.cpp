#include "glassformer/analysis/decomposition.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <doctest/doctest.h>

#include "glassformer/analysis/attribution.h"
#include "glassformer/analysis/circuits.h"
#include "glassformer/base/errors.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

using ModelPointer = std::shared_ptr<const Model>;

// By TransformerLens' own config; `more` are further fields of it.
ModelPointer tiny_lens(const std::string& more) {
  return tiny_model(R"({"model_type": "transformer_lens", "n_layers": 2, "d_model": 12, "d_head": 4, "n_heads": 3,
    "d_mlp": 10, "d_vocab": 17, "n_ctx": 9, "act_fn": "gelu", )" +
                    more + "}");
}

constexpr const char* kNormsBehind = R"("normalization_type": "RMS", "use_normalization_before_and_after": true)";
constexpr const char* kNormsOnlyBehind =
    R"("normalization_type": "RMS", "original_architecture": "Olmo2ForCausalLM", "positional_embedding_type": "rotary")";

std::vector<ModelPointer> models() {
  return {tiny_gpt2(),
          tiny_llama(),
          tiny_lens(kNormsBehind),
          tiny_lens(kNormsOnlyBehind),
          tiny_lens(R"("normalization_type": "LN", "parallel_attn_mlp": true, "positional_embedding_type": "rotary")"),
          tiny_lens(R"("normalization_type": "LNPre", "positional_embedding_type": "shortformer")"),
          tiny_lens(R"("normalization_type": "none", "attn_only": true)")};
}

at::Tensor stream_before(Trace& trace, int64_t layer, const Positions& positions) {
  const bool last = layer == trace.model().config().n_layers;
  return trace.read(last ? str("resid_post", layer - 1) : str("resid_pre", layer), positions);
}

std::vector<std::string> names(const Decomposition& stream) {
  std::vector<std::string> found;
  for (const PartLabel& label : stream.labels) found.push_back(label.name);
  return found;
}

}  // namespace

TEST_CASE("what is written into the stream sums to it") {
  for (const ModelPointer& model : models()) {
    const int64_t n_layers = model->config().n_layers;
    Trace trace(model, some_tokens(*model, 2, 5));
    trace.set("z0", at::randn({}, at::kDouble), Region().at("head", 1).at("pos", 1));
    for (int64_t layer = 0; layer <= n_layers; ++layer)
      for (const bool heads : {false, true})
        for (const bool neurons : {false, true})
          for (const Positions& positions : {Positions(), Positions{{-1, 1}}}) {
            DecompositionOptions options{layer, heads, neurons, positions};
            if (layer == n_layers) options.layer = std::nullopt;
            const Decomposition stream = decompose_stream(trace, options);
            const at::Tensor parts = stream.parts.stack();
            CHECK(parts.size(0) == static_cast<int64_t>(stream.labels.size()));
            CHECK(close(parts.sum(0), stream_before(trace, layer, positions)));
          }
  }
}

TEST_CASE("parts of the stream by name") {
  const ModelPointer model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 5));
  const Decomposition whole = decompose_stream(trace, {.layer = 2});
  CHECK(names(whole) == std::vector<std::string>{"embed", "pos_embed", "0.attn", "0.mlp", "1.attn", "1.mlp"});
  CHECK(close(whole.parts.stack()[4], trace.read("attn_out1")));
  const Decomposition small = decompose_stream(trace, {.layer = 1, .heads = true, .neurons = true});
  CHECK(names(small).size() == 2 + 3 + 48 + 1);
  const at::Tensor parts = small.parts.stack();
  CHECK(small.labels[4].name == "0.2");
  CHECK(close(parts[4], trace.read("result0").select(2, 2)));
  const PartLabel& neuron = small.labels[2 + 3 + 7];
  CHECK(neuron.name == "0.mlp.7");
  CHECK((neuron.kind == "neuron" && neuron.layer == 0 && neuron.index == 7));
  CHECK(close(parts[2 + 3 + 7], trace.read("post0").select(2, 7).unsqueeze(-1) *
                                    model->weights().get("blocks.0.mlp.out.weight").select(1, 7)));
  CHECK(small.labels.back().kind == "bias");
  CHECK(close(parts[2 + 3 + 48][0][3],
              model->weights().get("blocks.0.attn.o.bias") + model->weights().get("blocks.0.mlp.out.bias")));
}

TEST_CASE("what an edit of a sum changes is a part of its own") {
  const ModelPointer model = tiny_llama();
  Trace trace(model, some_tokens(*model, 1, 5));
  const at::Tensor before = decompose_stream(trace).parts.stack();
  const at::Tensor mid = trace.read("resid_mid2"), added = at::randn({16}, at::kDouble);
  trace.set("resid_mid2", mid + added);
  Decomposition stream = decompose_stream(trace);
  stream.parts.add_rest(trace.read("resid_post2"));
  const at::Tensor parts = stream.parts.stack();
  CHECK(close(parts[before.size(0)], added.expand({1, 5, 16})));
  CHECK(close(parts[before.size(0) - 2], before[before.size(0) - 2]));  // What comes before the edit.
}

TEST_CASE("the norm through which the stream is read") {
  for (const ModelPointer& model : models()) {
    Trace trace(model, some_tokens(*model, 2, 5));
    const Positions at{{3}};
    const at::Tensor table = model->weights().get("unembed.weight");
    const at::Tensor parts = decompose_stream(trace, {.heads = true, .positions = at}).parts.stack();
    at::Tensor logits = logit_attributions(parts, table[5], table[2], reading_norm(trace, {}, at)).sum(0);
    if (model->weights().has("ln_final.bias"))
      logits = logits + model->weights().get("ln_final.bias").dot(table[5] - table[2]);
    if (model->weights().has("unembed.bias"))
      logits = logits + model->weights().get("unembed.bias")[5] - model->weights().get("unembed.bias")[2];
    const at::Tensor expected = trace.read("logits", at);
    CHECK(close(logits, expected.select(2, 5) - expected.select(2, 2)));

    AttributionResult direct = direct_logit_attribution(trace, 5, 2, 3);
    at::Tensor sum = direct.components.front().logit;
    for (size_t i = 1; i < direct.components.size(); ++i) sum = sum + direct.components[i].logit;
    CHECK(close(sum, direct.logit));
    CHECK(close(direct.logit, logits.squeeze(1)));

    const std::optional<FrozenNorm> first = reading_norm(trace, 1);
    const bool is_read_plainly = model->config().norm == Norm::kNone || model->config().norms_after;
    CHECK(first.has_value() == !is_read_plainly);
    if (!first) continue;
    at::Tensor read = normed(trace.read("resid_pre1").unsqueeze(0), *first)[0];
    if (model->weights().has("blocks.1.ln1.bias")) read = read + model->weights().get("blocks.1.ln1.bias");
    CHECK(close(read, trace.read("blocks.1.ln1.hook_out")));
  }
}

TEST_CASE("decompositions that can't be are refused") {
  const ModelPointer model = tiny_gpt2();
  Trace trace(model, some_tokens(*model, 1, 5));
  CHECK_THROWS_AS(decompose_stream(trace, {.layer = 3}), InputError);
  CHECK_THROWS_AS(decompose_stream(trace, {.layer = -1}), InputError);
  CHECK_THROWS_AS(reading_norm(trace, 3), InputError);
  const ModelPointer experts = tiny_lens(R"("num_experts": 3, "experts_per_token": 2, "gated_mlp": true)");
  Trace routed(experts, some_tokens(*experts, 1, 4));
  CHECK(close(decompose_stream(routed, {.heads = true}).parts.stack().sum(0), routed.read("resid_post1")));
  CHECK_THROWS_AS(decompose_stream(routed, {.neurons = true}), UnsupportedError);
}

TEST_CASE("circuits are products of heads' weights") {
  for (const ModelPointer& model : {tiny_gpt2(), tiny_llama(), tiny_lens(kNormsBehind)}) {
    const ModelConfig& config = model->config();
    const int64_t layer = 1, d = config.d_head;
    const FactoredMatrix qk = qk_circuits(*model, layer), ov = ov_circuits(*model, layer);
    const std::vector<int64_t> shape = {config.n_heads, config.d_model, config.d_model};
    CHECK(qk.shape() == shape);
    CHECK(ov.shape() == shape);
    CHECK(qk.middle() == d);
    const auto weight = [&](const char* part) { return model->weights().get(str("blocks.1.attn.", part, ".weight")); };
    for (int64_t head = 0; head < config.n_heads; ++head) {
      const int64_t shared = head * config.n_kv_heads / config.n_heads;
      const at::Tensor q = weight("q").narrow(0, head * d, d), k = weight("k").narrow(0, shared * d, d);
      const at::Tensor v = weight("v").narrow(0, shared * d, d), o = weight("o").narrow(1, head * d, d);
      CHECK(close(qk.product()[head], at::matmul(q.t(), k)));
      CHECK(close(ov.product()[head], at::matmul(o, v).t()));
    }
    CHECK_THROWS_AS(ov_circuits(*model, config.n_layers), NameError);
    CHECK_THROWS_AS(qk_circuits(*model, -1), NameError);
  }
}
