#include "glassformer/analysis/explain.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <doctest/doctest.h>

#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"
#include "tests/tiny_model.h"

using namespace glassformer;

TEST_CASE("after going through the blocks nothing of them is computed a second time") {
  for (const auto& model : {tiny_gpt2(), tiny_llama()}) {
    constexpr int64_t kLength = 6;
    TraceOptions options;
    options.keep = KeepValues::kNeeded;  // As under a budget that a long prompt is far beyond.
    Trace trace(model, at::arange(kLength), options);
    std::vector<int64_t> seen;
    compute_blocks(trace, [&](int64_t done, int64_t) { seen.push_back(done); });
    CHECK(seen == std::vector<int64_t>{1, 2, 3});
    for (const int64_t layer : {2, 0, 1}) trace.read(str("blocks.", layer, ".attn.hook_pattern"));
    trace.read("logits");
    int64_t n_blocks = 0;
    for (const Work& work : trace.work()) {
      if (!work.node.ends_with(".hook_resid_post")) continue;
      ++n_blocks;
      CHECK_MESSAGE(work.rows == kLength, work.node);
    }
    CHECK(n_blocks == 3);
  }
}
