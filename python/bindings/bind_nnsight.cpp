#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "glassformer/trace/live.h"
#include "glassformer/trace/tape.h"
#include "glassformer/trace/trace.h"
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
class LentMethod {
 public:
  LentMethod(const std::vector<py::type>& types, const std::string& name, py::function provider)
      : name_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name.c_str()))),
        provider_(std::move(provider)) {
    for (const py::type& type : types) {
      auto* const object = reinterpret_cast<PyTypeObject*>(type.ptr());
      usual_.emplace_back(object, object->tp_getattro);
    }
  }
  void lend() {
    if (is_lent_) throw py::value_error("the method is lent already");
    only_ = this;
    is_lent_ = true;
    for (const auto& [type, usual] : usual_) type->tp_getattro = find_attribute;
  }
  void take_back() {
    for (const auto& [type, usual] : usual_) type->tp_getattro = usual;
    is_lent_ = false;
  }

 private:
  static inline LentMethod* only_ = nullptr;

  static PyObject* find_attribute(PyObject* self, PyObject* name) {
    const LentMethod& method = *only_;
    if (method.is_lent_ && name == method.name_.ptr()) {  // Names in code are interned.
      PyObject* const made = PyObject_CallOneArg(method.provider_.ptr(), self);
      if (made != Py_None) return made;
      Py_DECREF(made);
    }
    return method.usual_of(Py_TYPE(self))(self, name);
  }
  getattrofunc usual_of(PyTypeObject* type) const {
    for (; type != nullptr; type = type->tp_base)
      for (const auto& [lent, usual] : usual_)
        if (lent == type) return usual;
    return PyObject_GenericGetAttr;
  }

  py::object name_, provider_;
  std::vector<std::pair<PyTypeObject*, getattrofunc>> usual_;
  bool is_lent_ = false;
};

// What a node of one trace has for a user: the tensor, and, where that is a copy, what it is a copy of.
struct ForUser {
  at::Tensor value, source;
};

ForUser for_user(Trace& trace, const std::string& name, bool by_head) {
  const py::gil_scoped_release release;
  at::Tensor source = trace.hand_out(name);
  const Graph& graph = trace.model().graph();
  const bool is_flat = source.dim() == 4 && !by_head && !graph.node(graph.find(name)).has_keys();
  if (is_flat) return {source.flatten(2).clone(), source};
  // With a graph the trace goes on from the value itself.
  if (source.requires_grad()) return {lazy_clone(source), source};
  return {source, {}};
}

void set_attribute(const py::object& object, const char* name, const py::object& value) {
  if (PyObject_SetAttrString(object.ptr(), name, value.ptr()) != 0) throw py::error_already_set();
}

// Values in users' hands that are copies of what a trace watches itself, and which of them were written to.
class Watch {
 public:
  // A node's whole value as a tensor of the class `kind`. Its `_origin` says where it comes from: `told`, the trace,
  // the node, the tensor that it is a copy of and that one's version (None where the trace watches it itself). None
  // where a value that was given before has been changed, which is to be collected first.
  py::object hand_out(const py::object& trace, const std::string& node, bool by_head, const py::type& kind,
                      const py::object& told) {
    if (any_changed()) return py::none();
    const auto [value, source] = for_user(trace.cast<Trace&>(), node, by_head);
    const auto made = py::reinterpret_steal<py::object>(THPVariable_Wrap(value));
    set_attribute(made, "__class__", kind);
    if (source.defined()) {
      set_attribute(made, "_origin", py::make_tuple(told, trace, node, source, source._version()));
      add(value);
    } else {
      set_attribute(made, "_origin", py::make_tuple(told, py::none(), node, py::none(), 0));
      set_attribute(made, "_watcher", py::weakref(trace));
    }
    return made;
  }
  bool any_changed() {
    return std::any_of(values_.begin(), values_.end(), [](LiveValue& value) { return value.has_changed(); });
  }
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
  // Never destroyed: it may be lent when the interpreter ends.
  py::class_<LentMethod, std::unique_ptr<LentMethod, py::nodelete>>(module, "LentMethod")
      .def(py::init<const std::vector<py::type>&, const std::string&, py::function>(), py::arg("types"),
           py::arg("name"), py::arg("provider"))
      .def("lend", &LentMethod::lend)
      .def("take_back", &LentMethod::take_back);
  py::class_<Watch>(module, "Watch")
      .def(py::init<>())
      .def("hand_out", &Watch::hand_out, py::arg("trace"), py::arg("node"), py::arg("by_head"), py::arg("kind"),
           py::arg("told"))
      .def("add", &Watch::add, py::arg("value"))
      .def("settle", py::overload_cast<const at::Tensor&>(&Watch::settle), py::arg("value"))
      .def("any_changed", &Watch::any_changed)
      .def("changed", &Watch::changed)
      .def("values", &Watch::values)
      .def("clear", &Watch::clear);
}

}  // namespace glassformer
