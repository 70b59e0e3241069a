#pragma once
// One function for each part; each binds names only. Parts that pass tensors include torch/csrc/utils/pybind.h.

#include <pybind11/pybind11.h>

namespace glassformer {

void bind_errors(pybind11::module_& module);
void bind_io(pybind11::module_& module);
void bind_text(pybind11::module_& module);
void bind_model(pybind11::module_& module);
void bind_extend(pybind11::module_& module);
void bind_trace(pybind11::module_& module);
void bind_generate(pybind11::module_& module);
void bind_analysis(pybind11::module_& module);
void bind_factored(pybind11::module_& module);
void bind_steps(pybind11::module_& module);
void bind_residual(pybind11::module_& module);
void bind_losses(pybind11::module_& module);
void bind_nnsight(pybind11::module_& module);

}  // namespace glassformer
