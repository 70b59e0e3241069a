#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/analysis/attribution.h"
#include "glassformer/analysis/explain.h"
#include "glassformer/analysis/lens.h"
#include "glassformer/analysis/patching.h"
#include "glassformer/analysis/ranking.h"
#include "glassformer/analysis/weight_processing.h"
#include "glassformer/view/page.h"
#include "glassformer/view/terminal.h"
#include "python/bindings/bindings.h"
#include "python/bindings/poll.h"
#include "python/bindings/regions.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// A Python function of the logits, called with the GIL, and let go of with it.
Metric python_metric(const py::function& function, Positions positions) {
  const std::shared_ptr<py::function> held(new py::function(function), [](py::function* dying) {
    const py::gil_scoped_acquire gil;
    delete dying;
  });
  const auto value = [held](const at::Tensor& logits) -> at::Tensor {
    const py::gil_scoped_acquire gil;
    const py::object made = (*held)(logits);
    if (THPVariable_Check(made.ptr())) return made.cast<at::Tensor>();
    return at::scalar_tensor(py::float_(made).cast<double>(), at::TensorOptions(at::kDouble));
  };
  return {value, std::move(positions)};
}

// `patch(i)` gives a node, a value and an index of the node's value (None: all of it).
void python_sweep(Trace& trace, int64_t n_runs, const py::function& patch, const py::function& take) {
  const auto make = [&](int64_t i) {
    const py::gil_scoped_acquire gil;
    const auto [node, value, index] = patch(i).cast<std::tuple<std::string, at::Tensor, py::object>>();
    return Patch{node, value, region_of(index, node_shape(trace.model(), node, trace.batch(), trace.length()))};
  };
  const auto hand_over = [&take](int64_t i, const std::shared_ptr<PatchedRun>& run) {
    const py::gil_scoped_acquire gil;
    take(i, run);
  };
  const py::gil_scoped_release release;
  sweep_patches(trace, n_runs, make, hand_over);
}

template <typename Field>
std::optional<at::Tensor> or_none(const Field& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

}  // namespace

void bind_analysis(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<LensResult>(module, "LensResult")
      .def_readonly("layers", &LensResult::layers)
      .def_readonly("top_ids", &LensResult::top_ids)
      .def_readonly("top_logits", &LensResult::top_logits)
      .def_readonly("top_probabilities", &LensResult::top_probabilities)
      .def_property_readonly("target_logit", [](const LensResult& r) { return or_none(r.target_logit); })
      .def_property_readonly("target_probability", [](const LensResult& r) { return or_none(r.target_probability); })
      .def_property_readonly("target_rank", [](const LensResult& r) { return or_none(r.target_rank); })
      .def_property_readonly("logits", [](const LensResult& r) { return or_none(r.logits); });
  module.def(
      "logit_lens",
      [](Trace& trace, const Positions& positions, int64_t top_k, std::optional<int64_t> target, bool return_logits) {
        return logit_lens(trace, {positions, top_k, target, return_logits, {}});
      },
      py::arg("trace"), py::arg("positions"), py::arg("top_k"), py::arg("target"), py::arg("return_logits"), Release());
  py::class_<TokenRanking>(module, "TokenRanking")
      .def_readonly("probabilities", &TokenRanking::probabilities)
      .def_readonly("order", &TokenRanking::order)
      .def_readonly("ranks", &TokenRanking::ranks);
  module.def("rank_tokens", &rank_tokens, py::arg("logits"), Release());
  py::class_<Contribution>(module, "Contribution")
      .def_readonly("name", &Contribution::name)
      .def_readonly("kind", &Contribution::kind)
      .def_readonly("layer", &Contribution::layer)
      .def_readonly("logit", &Contribution::logit)
      .def("__repr__", [](const Contribution& c) { return "Contribution('" + c.name + "')"; });
  py::class_<AttributionResult>(module, "AttributionResult")
      .def_readonly("components", &AttributionResult::components)
      .def_readonly("heads", &AttributionResult::heads)
      .def_readonly("logit", &AttributionResult::logit);
  module.def("direct_logit_attribution", &direct_logit_attribution, py::arg("trace"), py::arg("token"),
             py::arg("versus"), py::arg("position"), Release());
  py::class_<PatchResult>(module, "PatchResult")
      .def_readonly("axes", &PatchResult::axes)
      .def_readonly("values", &PatchResult::values)
      .def_readonly("clean", &PatchResult::clean)
      .def_readonly("corrupted", &PatchResult::corrupted)
      .def("recovered", &PatchResult::recovered);
  py::class_<Metric>(module, "Metric").def(py::init(&python_metric), py::arg("function"), py::arg("positions"));
  module.def("logit_difference", &logit_difference, py::arg("answer"), py::arg("versus"), py::arg("position"));
  module.def(
      "activation_patching",
      [](Trace& clean, Trace& corrupted, const Metric& metric, const std::string& activation, bool by_position,
         bool by_head, const std::vector<int64_t>& layers, const std::optional<py::function>& progress) {
        PatchOptions options{activation, by_position, by_head, layers, {}};
        if (progress)
          options.progress = [&progress](int64_t done, int64_t total) {
            const py::gil_scoped_acquire gil;
            (*progress)(done, total);
          };
        const py::gil_scoped_release release;
        return activation_patching(clean, corrupted, metric, options);
      },
      py::arg("clean"), py::arg("corrupted"), py::arg("metric"), py::arg("activation"), py::arg("by_position"),
      py::arg("by_head"), py::arg("layers"), py::arg("progress"));
  py::class_<PatchedRun, std::shared_ptr<PatchedRun>>(module, "PatchedRun")
      .def("logits", &PatchedRun::logits, py::arg("positions"), Release());
  module.def("sweep_patches", &python_sweep, py::arg("trace"), py::arg("n_runs"), py::arg("patch"), py::arg("take"));
  module.def(
      "attribution_patching",
      [](Trace& clean, Trace& corrupted, const Metric& metric, const std::vector<std::string>& nodes) {
        std::vector<NodeAttribution> attributions;
        {
          const py::gil_scoped_release release;
          attributions = attribution_patching(clean, corrupted, metric, nodes);
        }
        py::dict by_name;
        for (const NodeAttribution& one : attributions) by_name[py::str(one.node)] = one.values;
        return by_name;
      },
      py::arg("clean"), py::arg("corrupted"), py::arg("metric"), py::arg("nodes"));
  module.def(
      "process_weights",
      [](const Model& model, bool fold_norms, bool center_writing_weights, bool center_unembed, bool fold_value_biases,
         bool refactor_attention) {
        return std::const_pointer_cast<Model>(process_weights(
            model, {fold_norms, center_writing_weights, center_unembed, fold_value_biases, refactor_attention}));
      },
      py::arg("model"), py::arg("fold_norms"), py::arg("center_writing_weights"), py::arg("center_unembed"),
      py::arg("fold_value_biases"), py::arg("refactor_attention"), Release());
  py::class_<Explanation>(module, "Explanation")
      .def("to_json", &to_json)
      .def("to_html", &render_page)
      .def(
          "to_text",
          [](const Explanation& explanation, int width) {
            return render_terminal(explanation, {false, width});
          },
          py::arg("width"));
  module.def(
      "explain",
      [](const std::shared_ptr<Model>& model, const std::string& text, const std::optional<std::string>& versus,
         int64_t n_next_tokens, int64_t n_heads, std::optional<int64_t> answer, std::optional<int64_t> versus_answer) {
        return explain(model, text, versus, {n_next_tokens, n_heads, answer, versus_answer, {}, python_poll()});
      },
      py::arg("model"), py::arg("text"), py::arg("versus"), py::arg("n_next_tokens"), py::arg("n_heads"),
      py::arg("answer"), py::arg("versus_answer"), Release());
}

}  // namespace glassformer
