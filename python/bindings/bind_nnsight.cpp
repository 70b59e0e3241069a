#include <ATen/core/grad_mode.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/equal.h>
#include <c10/core/impl/COW.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
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

// Values in users' hands that are copies of what a trace watches itself, and which of them were written to.
class Watch {
 public:
  void add(const at::Tensor& value) {
    if (values_.size() >= look_again_at_) drop_released();
    values_.push_back({value, {}, 0});
    settle(values_.back());
  }
  void settle(const at::Tensor& value) {
    for (Value& each : values_)
      if (each.held.is_same(value)) settle(each);
  }
  // The values that have other numbers than when they were last looked at, in the order in which they were handed out.
  std::vector<at::Tensor> changed() {
    std::vector<at::Tensor> found;
    for (Value& each : values_) {
      if (!has_changed(each)) continue;
      settle(each);
      found.push_back(each.held);
    }
    return found;
  }
  std::vector<at::Tensor> values() const {
    std::vector<at::Tensor> all;
    for (const Value& each : values_) all.push_back(each.held);
    return all;
  }
  void clear() { values_.clear(); }

 private:
  struct Value {
    at::Tensor held;
    at::Tensor baseline;  // In the same memory until one of them is written to.
    int64_t version;
  };

  static void settle(Value& value) {
    const at::NoGradGuard no_grad;
    value.version = value.held._version();
    value.baseline = at::_lazy_clone(value.held.detach());
  }
  // Torch counts its own writes; a write of any other kind (`.data`, `.numpy()`) ends the sharing of memory with the
  // baseline, and then the numbers are compared.
  static bool has_changed(const Value& value) {
    if (value.version != value.held._version()) return true;
    return !c10::impl::cow::is_cow_data_ptr(value.held.storage().data_ptr()) &&
           !value.held.detach().equal(value.baseline);
  }
  // A Python object around the tensor holds one reference to it, and lives itself as long as we hold another.
  static bool is_released(const at::Tensor& held) {
    const c10::impl::PyObjectSlot* const wrapped = held.unsafeGetTensorImpl()->pyobj_slot();
    const bool in_python = wrapped->load_pyobj() != nullptr;
    const bool is_ours = in_python ? held.use_count() == 2 && wrapped->has_unique_reference() : held.use_count() == 1;
    return is_ours && held.storage().use_count() == 1;
  }
  void drop_released() {
    std::erase_if(values_, [](const Value& value) { return is_released(value.held) && !has_changed(value); });
    look_again_at_ = std::max<size_t>(32, 2 * values_.size());
  }

  std::vector<Value> values_;
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
