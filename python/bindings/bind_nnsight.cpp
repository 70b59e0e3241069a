#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <vector>

#include "glassformer/trace/live.h"
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

// Values in users' hands that are copies of what a trace watches itself, and which of them were written to.
class Watch {
 public:
  void add(const at::Tensor& value) {
    if (values_.size() >= look_again_at_) drop_released();
    values_.push_back({-1, {}, value});
    values_.back().settle();
  }
  void settle(const at::Tensor& value) {
    for (LiveValue& each : values_)
      if (each.held.is_same(value)) each.settle();
  }
  // The values that have other numbers than when they were last looked at, in the order in which they were handed out.
  std::vector<at::Tensor> changed() {
    std::vector<at::Tensor> found;
    for (LiveValue& each : values_) {
      if (!each.has_changed()) continue;
      each.settle();
      found.push_back(each.held);
    }
    return found;
  }
  std::vector<at::Tensor> values() const {
    std::vector<at::Tensor> all;
    for (const LiveValue& each : values_) all.push_back(each.held);
    return all;
  }
  void clear() { values_.clear(); }

 private:
  void drop_released() {
    std::erase_if(values_, [](LiveValue& value) { return value.is_released() && !value.has_changed(); });
    look_again_at_ = std::max<size_t>(32, 2 * values_.size());
  }

  std::vector<LiveValue> values_;
  size_t look_again_at_ = 32;
};

}  // namespace

void bind_nnsight(py::module_& module) {
  module.def("lend_method", &lend, py::arg("types"), py::arg("name"), py::arg("provider"));
  module.def("take_back_method", &take_back);
  py::class_<Watch>(module, "Watch")
      .def(py::init<>())
      .def("add", &Watch::add, py::arg("value"))
      .def("settle", py::overload_cast<const at::Tensor&>(&Watch::settle), py::arg("value"))
      .def("changed", &Watch::changed)
      .def("values", &Watch::values)
      .def("clear", &Watch::clear);
}

}  // namespace glassformer
