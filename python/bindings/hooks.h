#pragma once
// Python functions as hooks.

#include <pybind11/pybind11.h>

#include <memory>

#include "glassformer/trace/hook.h"

namespace glassformer {

/// A Python object that takes the GIL to die, on whatever thread that is.
std::shared_ptr<pybind11::object> held_with_gil(const pybind11::object& object);
/// A hook that calls `function(value, call)`. It takes the GIL to run and to die, on whatever thread that is.
HookFunction python_hook(const pybind11::object& function);
/// What a Python function on `node` returned: a tensor, or `value` (perhaps changed in place) for None; `InputError`
/// otherwise.
at::Tensor tensor_returned(const pybind11::object& returned, const at::Tensor& value, const std::string& node);
void bind_hook_call(pybind11::module_& module);

}  // namespace glassformer
