#include <torch/csrc/utils/pybind.h>

#include "glassformer/analysis/head_detection.h"
#include "glassformer/analysis/losses.h"
#include "glassformer/graph/activations.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {

void bind_losses(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("next_token_losses", &next_token_losses, py::arg("logits"), py::arg("tokens"),
             py::arg("mask") = std::nullopt, Release());
  module.def("next_token_loss", &next_token_loss, py::arg("logits"), py::arg("tokens"), py::arg("mask") = std::nullopt,
             Release());
  module.def("next_token_matches", &next_token_matches, py::arg("logits"), py::arg("tokens"), Release());
  module.def("next_token_accuracy", &next_token_accuracy, py::arg("logits"), py::arg("tokens"), Release());
  module.def("log_probabilities", &log_probabilities, py::arg("logits"), Release());
  module.def("previous_token_pattern", &previous_token_pattern, py::arg("length"));
  module.def("duplicate_token_pattern", &duplicate_token_pattern, py::arg("tokens"));
  module.def("induction_pattern", &induction_pattern, py::arg("tokens"));
  const auto score = [&module](const char* name,
                               at::Tensor (*function)(const at::Tensor&, const at::Tensor&, const KeysLeftOut&)) {
    module.def(
        name,
        [function](const at::Tensor& patterns, const at::Tensor& expected, bool without_first, bool without_own) {
          return function(patterns, expected, {without_first, without_own});
        },
        py::arg("patterns"), py::arg("expected"), py::arg("without_first"), py::arg("without_own"), Release());
  };
  score("attention_share", &attention_share);
  score("attention_distance", &attention_distance);
  module.def("activate", &activate, py::arg("x"), py::arg("name"), Release());
  module.def("xielu", &xielu, py::arg("x"), py::arg("alpha_p"), py::arg("alpha_n"), py::arg("beta"), py::arg("eps"),
             Release());
  module.def("learned_xielu", &learned_xielu, py::arg("x"), py::arg("alpha_p"), py::arg("alpha_n"), py::arg("beta"),
             py::arg("eps"), Release());
  module.def("soft_cap", &soft_cap, py::arg("x"), py::arg("cap"), Release());
}

}  // namespace glassformer
