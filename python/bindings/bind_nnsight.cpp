#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string_view>
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
    if (only_ != nullptr && only_ != this && only_->n_lent_ > 0) throw py::value_error("another method is lent");
    only_ = this;
    if (n_lent_++ > 0) return;
    for (const auto& [type, usual] : usual_) type->tp_getattro = find_attribute;
  }
  // The method is taken back when it was as often as it was lent.
  void take_back() {
    if (n_lent_ == 0) throw py::value_error("the method is not lent");
    if (--n_lent_ > 0) return;
    for (const auto& [type, usual] : usual_) type->tp_getattro = usual;
  }

 private:
  static inline LentMethod* only_ = nullptr;

  static PyObject* find_attribute(PyObject* self, PyObject* name) {
    const LentMethod& method = *only_;                       // Types made meanwhile have this function for good.
    if (method.n_lent_ > 0 && name == method.name_.ptr()) {  // Names in code are interned.
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
  size_t n_lent_ = 0;
};

// What a node of one trace has for a user: the tensor, and, where that is a copy, what it is a copy of.
struct ForUser {
  at::Tensor value, source;
};

ForUser for_user(Trace& trace, std::string_view name, bool by_head) {
  const py::gil_scoped_release release;
  at::Tensor source = trace.hand_out(name);
  const Graph& graph = trace.model().graph();
  const bool is_flat = source.dim() == 4 && !by_head && !graph.node(graph.find(name)).has_keys();
  if (is_flat) return {source.flatten(2).clone(), source};
  // With a graph the trace goes on from the value itself.
  if (source.requires_grad()) return {lazy_clone(source), source};
  return {source, {}};
}

// Values in users' hands that are copies of what a trace watches itself, and which of them were written to.
class Watch {
 public:
  void add(const at::Tensor& value) { values_.add({-1, {}, value}); }
  void settle(const at::Tensor& value) {
    if (LiveValue* const found = values_.find(value)) found->settle();
  }
  // Makes edits of what was changed in place since: values that were taken out of others go first.
  void collect() {
    std::vector<at::Tensor> changed;
    for (LiveValue* const each : values_.changed()) {
      each->settle();
      changed.push_back(each->held);
    }
    values_.drop_released_at_times();
    for (auto value = changed.rbegin(); value != changed.rend(); ++value) {
      const py::object whole = py::cast(*value);
      whole.attr("pieces").attr("push")(whole);
    }
  }
  std::vector<at::Tensor> values() {
    std::vector<at::Tensor> all;
    for (const LiveValue& each : values_) all.push_back(each.held);
    return all;
  }
  bool is_open() const { return is_open_; }
  // Watches nothing any more; gives what it watched and is on no graph.
  std::vector<at::Tensor> close() {
    std::vector<at::Tensor> plain;
    for (const LiveValue& each : values_)
      if (!each.held.requires_grad()) plain.push_back(each.held);
    values_.clear();
    is_open_ = false;
    return plain;
  }

 private:
  LiveValues values_;
  bool is_open_ = true;
};

// Reads whole nodes of a trace for its user. Scopes that stand for a single trace at its only step read through one:
// the way from a module to its value is gone so often that Python's part in it would take longer than a small model.
class Reader {
 public:
  Reader(const py::object& watch, const py::object& trace, const py::object& padding, const py::object& scope)
      : trace_(trace),
        told_(py::make_tuple(watch, py::weakref(trace), padding, scope)),
        values_(watch.cast<Watch*>()),
        core_(trace.cast<Trace*>()) {}
  // The node's value as a tensor of the class `kind`, watched. Its `_origin` says where it comes from: what the reader
  // was told, the node, and, where the value is a copy, what it is a copy of, that one's version and, on a
  // graph, the trace.
  py::object read(const py::str& node, const py::type& kind, bool by_head) {
    values_->collect();
    const auto [value, source] = for_user(*core_, node.cast<std::string_view>(), by_head);
    auto* const type = reinterpret_cast<PyTypeObject*>(kind.ptr());
    const auto made = py::reinterpret_steal<py::object>(THPVariable_Wrap(value, type));
    if (Py_TYPE(made.ptr()) != type) made.attr("__class__") = kind;  // Python had it already.
    py::tuple origin = py::make_tuple(told_, node);
    if (source.requires_grad()) {
      origin = py::make_tuple(told_, node, source, source._version(), trace_);
    } else if (source.defined()) {
      origin = py::make_tuple(told_, node, source, source._version());
    }
    if (PyObject_SetAttr(made.ptr(), origin_name_.ptr(), origin.ptr()) != 0) throw py::error_already_set();
    if (source.defined()) values_->add(value);
    return made;
  }

 private:
  py::object trace_;
  py::tuple told_;
  Watch* values_;
  Trace* core_;
  py::object origin_name_ = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("_origin"));
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
      .def_property_readonly("is_open", &Watch::is_open)
      .def("add", &Watch::add, py::arg("value"))
      .def("settle", &Watch::settle, py::arg("value"))
      .def("collect", &Watch::collect)
      .def("values", &Watch::values)
      .def("close", &Watch::close);
  py::class_<Reader>(module, "Reader")
      .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&>(), py::arg("watch"),
           py::arg("trace"), py::arg("padding"), py::arg("scope"))
      .def("read", &Reader::read, py::arg("node"), py::arg("kind"), py::arg("by_head") = false);
}

}  // namespace glassformer
