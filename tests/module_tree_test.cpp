#include "glassformer/graph/module_tree.h"

#include <ATen/TensorOperators.h>
#include <doctest/doctest.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

namespace {

ModuleInfo module_at(const Model& model, const std::string& path) {
  for (ModuleInfo& module : module_tree(model))
    if (module.path == path) return std::move(module);
  FAIL("no module ", path);
  return {};
}

}  // namespace

TEST_CASE("modules of a layer stand one layer after the other, after the list of layers") {
  const auto model = tiny_gpt2();
  const std::vector<ModuleInfo> modules = module_tree(*model);
  const auto place = [&](const std::string& path) {
    return std::find_if(modules.begin(), modules.end(), [&](const auto& module) { return module.path == path; }) -
           modules.begin();
  };
  CHECK(modules.front().path.empty());
  CHECK(place("transformer.h") + 1 == place("transformer.h.0"));
  CHECK(place("transformer.h.0.mlp.dropout") + 1 == place("transformer.h.1"));
  CHECK(place("transformer.h.2.mlp.dropout") + 1 == place("transformer.ln_f"));
  CHECK(place("lm_head") + 1 == static_cast<int64_t>(modules.size()));
  CHECK(module_at(*model, "transformer.h.2.attn.c_attn").layer == 2);
}

TEST_CASE("every module's nodes are there, and its call begins where its output can be computed") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()})
    for (const ModuleInfo& module : module_tree(*model)) {
      INFO(module.path);
      CHECK(module.input.empty() == (module.part == "blocks"));
      for (const auto* names : {&module.input, &module.output, &module.more_outputs})
        for (const std::string& name : *names) CHECK(model->graph().node(model->graph().find(name)).name == name);
      if (module.call_begin.empty()) continue;
      Trace whole(model, some_tokens(*model, 1, 5));
      Trace part = Trace::from_node(model, module.call_begin, whole.read(module.call_begin));
      for (const std::string& name : module.output) CHECK(close(part.read(name), whole.read(name)));
    }
}

TEST_CASE("a module's input is private where nothing else reads it") {
  const auto model = tiny_llama();
  const auto is_private = [&](const char* path) { return module_at(*model, path).input_is_private; };
  CHECK(is_private("model.layers.1"));
  CHECK(is_private("model.layers.1.self_attn"));
  CHECK_FALSE(is_private("model.layers.1.self_attn.q_proj"));
  CHECK_FALSE(is_private("model.layers.1.input_layernorm"));
  CHECK(is_private("model.layers.1.mlp.act_fn"));
}

TEST_CASE("a model without an implementation in transformers has no modules") {
  const auto model = tiny_model(R"({"model_type": "transformer_lens", "n_layers": 1, "d_model": 8, "n_heads": 2,
    "d_head": 4, "d_mlp": 8, "d_vocab": 11, "n_ctx": 9, "act_fn": "relu"})");
  CHECK_THROWS_WITH_AS(
      module_tree(*model),
      "model 'transformer_lens' has no modules: it is of no architecture of transformers; use its nodes",
      UnsupportedError);
}
