#include "python/bindings/hooks.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/base/errors.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// What a hook learns of its call; outlives it.
struct PythonHookCall {
  std::string name;
  std::optional<int64_t> layer;
  int64_t segment, begin, end;
  const HookCall* running;  // Null once the hook has returned.

  at::Tensor read(const std::string& node) const {
    if (running == nullptr) throw OrderError("the hook on " + name + " has returned: read the trace instead");
    return running->read(node);
  }
};

struct Returning {
  PythonHookCall& call;
  ~Returning() { call.running = nullptr; }
};

void drop_with_gil(py::object* object) {
  if (Py_IsInitialized() == 0) return;  // The interpreter is gone, and the object with it.
  const py::gil_scoped_acquire gil;
  delete object;
}

}  // namespace

std::shared_ptr<py::object> held_with_gil(const py::object& object) { return {new py::object(object), drop_with_gil}; }

at::Tensor tensor_returned(const py::object& returned, const at::Tensor& value, const std::string& node) {
  if (returned.is_none()) return value;
  if (!THPVariable_Check(returned.ptr()))
    throw InputError(str("the function on ", node, " returned ", Py_TYPE(returned.ptr())->tp_name,
                         "; expected a tensor, or None after changing its argument in place"));
  return returned.cast<at::Tensor>();
}

HookFunction python_hook(const py::object& function) {
  if (PyCallable_Check(function.ptr()) == 0)
    throw InputError(str("a hook is a function of (value, call); found ", Py_TYPE(function.ptr())->tp_name));
  const std::shared_ptr<py::object> held = held_with_gil(function);
  return [held](const at::Tensor& value, const HookCall& call) {
    const py::gil_scoped_acquire gil;
    const std::string& name = call.node().name;
    const auto told = std::make_shared<PythonHookCall>(
        PythonHookCall{name, layer_of(call.node()), call.segment(), call.begin(), call.end(), &call});
    const Returning returning{*told};
    return tensor_returned((*held)(value, told), value, name);
  };
}

void bind_hook_call(py::module_& module) {
  py::class_<PythonHookCall, std::shared_ptr<PythonHookCall>>(
      module, "HookCall",
      "Where a hook is called: the node's `name`, its `layer` (None outside the blocks), the "
      "`segment` (0: the prompt), and the positions from `begin` up to `end`.")
      .def_readonly("name", &PythonHookCall::name, "The full name of the node.")
      .def_readonly("layer", &PythonHookCall::layer, "The number of the block, or None.")
      .def_readonly("segment", &PythonHookCall::segment, "0 for the prompt, then one more for each append.")
      .def_readonly("begin", &PythonHookCall::begin, "The first position of the segment.")
      .def_readonly("end", &PythonHookCall::end, "The position after its last.")
      .def("read", &PythonHookCall::read, py::arg("node"), py::call_guard<py::gil_scoped_release>(),
           "The value of a node that comes before this one, at the same positions; while the hook runs.");
}

}  // namespace glassformer
