#include "glassformer/base/errors.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// Python classes of the same names; each also derives from the built-in that a Python user would catch.
struct ErrorClasses {
  PyObject *error, *file, *name, *shape, *input, *order, *stale, *unavailable, *unsupported;
};

PyObject* make_class(py::module_& module, const char* name, const char* text, PyObject* base, PyObject* builtin) {
  py::dict members;
  members["__str__"] = py::reinterpret_borrow<py::object>(PyExc_Exception).attr("__str__");  // KeyError would quote it.
  py::list bases;
  bases.append(py::handle(base));
  if (builtin != nullptr) bases.append(py::handle(builtin));
  const std::string whole = std::string("glassformer.") + name;
  PyObject* made = PyErr_NewExceptionWithDoc(whole.c_str(), text, py::tuple(bases).ptr(), members.ptr());
  if (made == nullptr) throw py::error_already_set();
  module.add_object(name, py::reinterpret_borrow<py::object>(made));
  return made;
}

}  // namespace

void bind_errors(py::module_& module) {
  static ErrorClasses classes;  // Exception classes live as long as the interpreter.
  classes.error = make_class(module, "Error", "The base of Glassformer's errors.", PyExc_Exception, nullptr);
  const auto add = [&](const char* name, const char* text, PyObject* builtin) {
    return make_class(module, name, text, classes.error, builtin);
  };
  classes.file = add("FileError", "A file is missing, cut off, or not what it says it is.", PyExc_OSError);
  classes.name = add("NameError", "Nothing has that name; the nearest ones are named.", PyExc_KeyError);
  classes.shape = add("ShapeError", "A tensor has another shape than where it is meant for.", PyExc_ValueError);
  classes.input = add("InputError", "Input that a model can't take.", PyExc_ValueError);
  classes.order = add("OrderError", "Edits in an order that leaves their meaning open.", PyExc_RuntimeError);
  classes.stale =
      add("StaleEditError", "A value was changed after it stopped being the current one.", PyExc_RuntimeError);
  classes.unavailable = add("UnavailableError", "A node that this trace can't have.", PyExc_RuntimeError);
  classes.unsupported = add("UnsupportedError", "A feature that Glassformer lacks.", PyExc_NotImplementedError);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const FileError& e) {
      PyErr_SetString(classes.file, e.what());
    } catch (const NameError& e) {
      PyErr_SetString(classes.name, e.what());
    } catch (const ShapeError& e) {
      PyErr_SetString(classes.shape, e.what());
    } catch (const InputError& e) {
      PyErr_SetString(classes.input, e.what());
    } catch (const OrderError& e) {
      PyErr_SetString(classes.order, e.what());
    } catch (const StaleEditError& e) {
      PyErr_SetString(classes.stale, e.what());
    } catch (const UnavailableError& e) {
      PyErr_SetString(classes.unavailable, e.what());
    } catch (const UnsupportedError& e) {
      PyErr_SetString(classes.unsupported, e.what());
    } catch (const Error& e) {
      PyErr_SetString(classes.error, e.what());
    }
  });
}

}  // namespace glassformer
