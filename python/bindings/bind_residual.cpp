#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/analysis/residual_parts.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {

void bind_residual(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<FrozenNorm>(module, "FrozenNorm")
      .def(py::init([](at::Tensor scale, bool center, std::optional<at::Tensor> weight) {
             return FrozenNorm{std::move(scale), center, weight.value_or(at::Tensor())};
           }),
           py::arg("scale"), py::arg("center"), py::arg("weight"));
  module.def("normed", &normed, py::arg("stack"), py::arg("norm"), Release());
  module.def("head_results", &head_results, py::arg("z"), py::arg("W_O"), Release());
  module.def("neuron_results", &neuron_results, py::arg("activations"), py::arg("W_out"), py::arg("projection"),
             py::arg("after"), Release());
  module.def("logit_attributions", &logit_attributions, py::arg("stack"), py::arg("directions"), py::arg("versus"),
             py::arg("norm"), Release());
  py::class_<ResidualParts>(module, "ResidualParts")
      .def(py::init<>())
      .def("add", &ResidualParts::add, py::arg("stack"), Release())
      .def("add_heads", &ResidualParts::add_heads, py::arg("results"), py::arg("after"), Release())
      .def("add_neurons", &ResidualParts::add_neurons, py::arg("activations"), py::arg("W_out"), py::arg("after"),
           Release())
      .def("add_bias", &ResidualParts::add_bias, py::arg("biases"), Release())
      .def("add_rest", &ResidualParts::add_rest, py::arg("whole"), Release())
      .def("stack", &ResidualParts::stack, py::arg("norm"), py::arg("projection"), Release());
}

}  // namespace glassformer
