#include <torch/csrc/utils/pybind.h>

#include "glassformer/base/errors.h"
#include "glassformer/trace/generate.h"
#include "python/bindings/bindings.h"
#include "python/bindings/hooks.h"
#include "python/bindings/regions.h"

namespace py = pybind11;

namespace glassformer {
namespace {

SamplerOrder order_named(const std::string& name) {
  if (name == "transformers") return SamplerOrder::kTransformers;
  if (name == "transformer_lens") return SamplerOrder::kTransformerLens;
  throw InputError("order is '" + name + "'; expected 'transformers' or 'transformer_lens'");
}

// (node, value, index, steps)
StepEdit step_edit(const Model& model,
                   const std::tuple<std::string, at::Tensor, py::object, std::vector<int64_t>>& given) {
  const auto& [name, value, index, steps] = given;
  std::vector<int64_t> shape;
  for (const Axis& axis : model.graph().node(model.graph().find(name)).axes)
    shape.push_back(axis.word == "batch" ? 1 : axis.size == 0 ? kAnyLength : axis.size);
  return {name, value, region_of(index, shape), steps};
}

}  // namespace

void bind_generate(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<SamplerOptions>(module, "SamplerOptions")
      .def(py::init([](bool sample, double temperature, int64_t top_k, double top_p, double min_p,
                       double frequency_penalty, double repetition_penalty, const std::string& order) {
             SamplerOptions options{
                 sample, temperature, top_k, top_p, min_p, frequency_penalty, repetition_penalty, order_named(order)};
             check_sampler(options);
             return options;
           }),
           py::arg("sample") = false, py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
           py::arg("min_p") = 0.0, py::arg("frequency_penalty") = 0.0, py::arg("repetition_penalty") = 1.0,
           py::arg("order") = "transformers");
  module.def(
      "sample",
      [](const at::Tensor& logits, const std::vector<std::vector<int64_t>>& texts, const SamplerOptions& options) {
        return sample(logits, texts, options);
      },
      py::arg("logits"), py::arg("texts"), py::arg("options"));
  py::class_<Generated>(module, "Generated")
      .def_readonly("ids", &Generated::ids)
      .def_readonly("finish", &Generated::finish);
  py::class_<Generation>(module, "Generation")
      .def(py::init([](const std::vector<Trace*>& traces, int64_t max_new_tokens, const SamplerOptions& sampler,
                       std::optional<uint64_t> seed, std::optional<std::vector<int64_t>> stop_tokens,
                       const std::vector<std::string>& stop_strings,
                       const std::vector<std::tuple<std::string, at::Tensor, py::object, std::vector<int64_t>>>& edits,
                       const std::vector<std::tuple<std::string, py::object, std::vector<int64_t>>>& hooks,
                       int64_t min_new_tokens) {
             GenerateOptions options{.max_new_tokens = max_new_tokens,
                                     .min_new_tokens = min_new_tokens,
                                     .sampler = sampler,
                                     .seed = seed,
                                     .stop_tokens = std::move(stop_tokens),
                                     .stop_strings = stop_strings};
             for (const auto& [node, function, steps] : hooks)
               options.hooks.push_back({node, python_hook(function), steps});
             if (traces.empty()) throw InputError("no prompts");
             for (const auto& edit : edits) options.edits.push_back(step_edit(traces.front()->model(), edit));
             return Generation(traces, options);
           }),
           py::arg("traces"), py::arg("max_new_tokens"), py::arg("sampler"), py::arg("seed"), py::arg("stop_tokens"),
           py::arg("stop_strings"), py::arg("edits"), py::arg("hooks"), py::arg("min_new_tokens") = 0,
           py::keep_alive<1, 2>())
      .def("done", &Generation::done)
      .def("begin_step", &Generation::begin_step)
      .def("step", &Generation::step, Release())
      .def("results", &Generation::results);
}

}  // namespace glassformer
