// The steps of the block by themselves, for modules that are called on tensors.

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"
#include "glassformer/graph/experts.h"
#include "glassformer/graph/steps.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

using Optional = std::optional<at::Tensor>;

struct Given {
  std::vector<at::Tensor> inputs;
  std::vector<Optional> weights = {};
};

WeightId place(const Optional& weight, WeightId id) { return weight ? id : -1; }

at::Tensor run(const steps::Run& step, const Given& given, int64_t n_past = 0, int64_t n_keys = 0,
               int64_t length_class = 0, const QueryMask* query_mask = nullptr) {
  std::vector<at::Tensor> weights;
  for (const Optional& weight : given.weights) weights.push_back(weight.value_or(at::Tensor()));
  const at::Tensor& first = given.inputs[0];
  const RowSet rows(n_past, n_past + first.size(first.dim() > 1 ? 1 : 0));
  const py::gil_scoped_release release;
  return step({given.inputs, *Weights::of(weights), rows, n_keys, length_class, query_mask});
}

// All axes but the last `n_own` of the first input as rows, and back.
at::Tensor run_by_row(const steps::Run& step, Given given, int64_t n_own) {
  const at::Tensor& first = given.inputs[0];
  const std::vector<int64_t> outer = first.sizes().slice(0, static_cast<size_t>(first.dim() - n_own)).vec();
  for (at::Tensor& input : given.inputs)
    input = outer.empty() ? input.unsqueeze(0) : input.flatten(0, static_cast<int64_t>(outer.size()) - 1);
  const at::Tensor made = run(step, given);
  std::vector<int64_t> shape = outer;
  for (int64_t axis = 1; axis < made.dim(); ++axis) shape.push_back(made.size(axis));
  return made.reshape(shape);
}

Norm norm_named(const std::string& name) { return name == "rms" ? Norm::kRmsNorm : Norm::kLayerNorm; }

steps::Attention attention_of(const at::Tensor& q, const at::Tensor& k) {
  return {.n_heads = q.size(2), .n_kv_heads = k.size(2), .scale = 1, .window = 0, .upcast = false};
}

void bind_plain_steps(py::module_& module) {
  module.def("embed", [](const at::Tensor& tokens, const at::Tensor& table) {
    return run_by_row(steps::embed(0), {{tokens}, {table}}, 0);
  });
  module.def("norm_scale", [](const at::Tensor& x, const std::string& norm, double eps) {
    return run_by_row(steps::norm_scale(norm_named(norm), eps), {{x}}, 1);
  });
  module.def("norm_divide", [](const at::Tensor& x, const at::Tensor& scale, const std::string& norm) {
    return run_by_row(steps::norm_divide(norm_named(norm)), {{x, scale}}, 1);
  });
  module.def("norm_apply", [](const at::Tensor& x, const Optional& weight, const Optional& bias) {
    return run_by_row(steps::norm_apply(place(weight, 0), place(bias, 1)), {{x}, {weight, bias}}, 1);
  });
  module.def(
      "linear",
      [](const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
        return run_by_row(steps::linear(0, place(bias, 1)), {{x}, {weight, bias}}, 1);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias") = py::none());
  module.def("linear_by_head", [](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
    const steps::HeadInput input{Norm::kNone, 0, -1, -1, 0, 1, x.size(-2)};
    return run_by_row(steps::linear_by_head(input), {{x}, {weight, bias}}, 2);
  });
  module.def("head_results", [](const at::Tensor& z, const at::Tensor& weight) {
    return run_by_row(steps::head_results(0), {{z}, {weight}}, 2);
  });
  module.def("sum_heads", [](const at::Tensor& results, const at::Tensor& bias) {
    return run_by_row(steps::sum_heads(0), {{results}, {bias}}, 2);
  });
  module.def("scale_by_log", [](const at::Tensor& q, int64_t n_past, int64_t length) {
    return run(steps::scale_by_log(length), {{q}}, n_past);
  });
  module.def("scores", [](const at::Tensor& q, const at::Tensor& k, double scale, double cap) {
    steps::Attention how = attention_of(q, k);
    how.scale = scale;
    how.score_cap = cap;
    return run(steps::scores(how), {{q, k, {}}}, k.size(1), k.size(1));  // Behind all keys, every one is seen.
  });
  module.def("alibi_bias",
             [](int64_t n_heads, int64_t n_past, int64_t n_keys, at::ScalarType dtype, at::Device device) {
               const auto options = at::TensorOptions(dtype).device(device);
               return steps::alibi_bias(n_heads, RowSet(n_past, n_keys), n_keys, options);
             });
  module.def("mask_scores", [](const at::Tensor& scores, int64_t n_past, int64_t window, const Optional& key_mask) {
    const RowSet rows(n_past, n_past + scores.size(-2));
    return steps::masked_scores(scores, rows, {window, key_mask.value_or(at::Tensor())});
  });
  module.def(
      "pattern",
      [](const at::Tensor& scores, at::ScalarType dtype, const Optional& sinks) {
        return run(steps::pattern(dtype, place(sinks, 0)), {{scores}, {sinks}});
      },
      py::arg("scores"), py::arg("dtype"), py::arg("sinks") = py::none());
  module.def("mix_values", [](const at::Tensor& pattern, const at::Tensor& v) {
    steps::Attention how = attention_of(v, v);
    how.n_heads = pattern.size(1);
    return run(steps::mix_values(how), {{pattern, v}});
  });
  module.def(
      "expert_weights",
      [](const at::Tensor& logits, int64_t per_token, bool top_first) {
        return run(steps::expert_weights({.per_token = per_token, .top_first = top_first}), {{logits}});
      },
      py::arg("logits"), py::arg("per_token"), py::arg("top_first"));
  module.def("clamped_glu", [](const at::Tensor& gate, const at::Tensor& linear) {
    return run_by_row(steps::gate({Activation::kClampedGlu}), {{gate, linear}}, 1);
  });
}

// What of the steps depends on a model's config.
class BlockMath {
 public:
  explicit BlockMath(const std::string& config_json) : config_(describe(config_json, "config").config) {}

  std::pair<at::Tensor, at::Tensor> tables(const at::Tensor& positions, at::ScalarType dtype, bool local) const {
    const Rope& rope = local ? config_.local_rope : config_.rope;
    const int64_t length = length_class(rope, positions.max().item<int64_t>() + 1);
    const auto table = [&](bool sine) {
      return run(steps::rotary_table(rope, sine, dtype), {{positions}}, 0, 0, length);
    };
    return {table(true), table(false)};
  }

  // x: batch pos head d_head; positions: batch pos.
  at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, bool local) const {
    const auto [sin, cos] = tables(positions.flatten(), x.scalar_type(), local);
    const at::Tensor made = run(steps::rotate(config_.rope), {{x.flatten(0, 1), cos, sin}});
    return made.unflatten(0, {x.size(0), x.size(1)});
  }

 private:
  ModelConfig config_;
};

}  // namespace

void bind_steps(py::module_& module) {
  py::module_ steps = module.def_submodule("steps", "The steps of the block, each by itself, on tensors.");
  bind_plain_steps(steps);
  py::class_<BlockMath>(module, "BlockMath", "The steps that depend on a model's config.")
      .def(py::init<const std::string&>(), py::arg("config_json"))
      .def("rotary_tables", [](const BlockMath& math, int64_t length,
                               bool local) { return math.tables(at::arange(length), at::kDouble, local); })
      .def("rotate", &BlockMath::rotate, py::arg("x"), py::arg("positions"), py::arg("local"));
}

}  // namespace glassformer
