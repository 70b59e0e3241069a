#include <c10/core/impl/COW.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <vector>

#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// Note: a method on built-in types, for a while
// ----------------------------------------------
// Types like `list` take no attributes, and putting one into their dictionaries would show it to every thread and make
// Python forget what it knows of these types, which costs more than a small trace. Instead the function that looks up
// their attributes is replaced: the one name is asked of `provider`, which may decline by None. Nothing is
// written to a type but that pointer, and taking the method back restores it. All of this happens under the GIL.
struct Lent {
  py::object name, provider;
  std::map<PyTypeObject*, getattrofunc> before;
};

Lent& lent() {
  static auto* const state = new Lent;  // Never destroyed: Python may be gone by then.
  return *state;
}

getattrofunc usual_of(PyTypeObject* type) {
  for (; type != nullptr; type = type->tp_base)
    if (const auto found = lent().before.find(type); found != lent().before.end()) return found->second;
  return PyObject_GenericGetAttr;
}

PyObject* find_attribute(PyObject* self, PyObject* name) {
  if (name == lent().name.ptr()) {  // Names in code are interned.
    PyObject* const made = PyObject_CallOneArg(lent().provider.ptr(), self);
    if (made != Py_None) return made;
    Py_DECREF(made);
  }
  return usual_of(Py_TYPE(self))(self, name);
}

void lend(const std::vector<py::type>& types, const std::string& name, const py::function& provider) {
  if (!lent().before.empty()) throw py::value_error("a method is lent already");
  lent().name = py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name.c_str()));
  lent().provider = provider;
  for (const py::type& type : types) {
    auto* const object = reinterpret_cast<PyTypeObject*>(type.ptr());
    lent().before.emplace(object, object->tp_getattro);
    object->tp_getattro = find_attribute;
  }
}

void take_back() {
  for (const auto& [type, usual] : lent().before) type->tp_getattro = usual;
  lent().before.clear();
  lent().name = lent().provider = py::object();
}

// Which tensors were written to. Torch counts its own writes; a write of any other kind (`.data`, `.numpy()`) ends the
// sharing of memory with the baseline, and then the numbers are compared.
std::vector<size_t> changed_since(const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& versions,
                                  const std::vector<at::Tensor>& baselines) {
  std::vector<size_t> changed;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool shared = c10::impl::cow::is_cow_data_ptr(tensors[i].storage().data_ptr());
    if (tensors[i]._version() != versions[i] || (!shared && !tensors[i].detach().equal(baselines[i])))
      changed.push_back(i);
  }
  return changed;
}

}  // namespace

void bind_nnsight(py::module_& module) {
  module.def("lend_method", &lend, py::arg("types"), py::arg("name"), py::arg("provider"));
  module.def("take_back_method", &take_back);
  module.def("changed_since", &changed_since, py::arg("tensors"), py::arg("versions"), py::arg("baselines"));
}

}  // namespace glassformer
