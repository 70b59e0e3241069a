#include <ATen/TensorIndexing.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/analysis/factored_matrix.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

at::indexing::TensorIndex index_entry(py::handle entry) {
  if (entry.is_none()) return std::nullopt;
  if (entry.ptr() == Py_Ellipsis) return at::indexing::Ellipsis;
  if (PyBool_Check(entry.ptr())) return entry.cast<bool>();
  if (THPVariable_Check(entry.ptr())) return THPVariable_Unpack(entry.ptr());
  if (!PySlice_Check(entry.ptr())) return entry.cast<int64_t>();
  Py_ssize_t start, stop, step;
  if (PySlice_Unpack(entry.ptr(), &start, &stop, &step) < 0) throw py::error_already_set();
  return at::indexing::Slice(start, stop, step);
}

FactoredMatrix indexed(const FactoredMatrix& matrix, const py::tuple& entries) {
  std::vector<at::indexing::TensorIndex> converted;
  for (const py::handle entry : entries) converted.push_back(index_entry(entry));
  try {
    return matrix.index(converted);
  } catch (const c10::IndexError& e) {
    throw py::index_error(e.what_without_backtrace());  // Loops over a matrix end by it.
  }
}

py::tuple svd_of(const FactoredMatrix& matrix) {
  const SingularValues values = [&] {
    const py::gil_scoped_release release;
    return matrix.svd();
  }();
  return py::make_tuple(values.U, values.S, values.V);
}

}  // namespace

void bind_factored(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<FactoredMatrix>(module, "FactoredMatrix")
      .def(py::init<at::Tensor, at::Tensor>(), py::arg("a"), py::arg("b"))
      .def_property_readonly("a", &FactoredMatrix::a)
      .def_property_readonly("b", &FactoredMatrix::b)
      .def_property_readonly("left", &FactoredMatrix::left)
      .def_property_readonly("middle", &FactoredMatrix::middle)
      .def_property_readonly("right", &FactoredMatrix::right)
      .def_property_readonly("shape", &FactoredMatrix::shape)
      .def("product", &FactoredMatrix::product, Release())
      .def("reverse_product", &FactoredMatrix::reverse_product, Release())
      .def("times", py::overload_cast<const at::Tensor&>(&FactoredMatrix::times, py::const_), Release())
      .def("times", py::overload_cast<const FactoredMatrix&>(&FactoredMatrix::times, py::const_), Release())
      .def("after", &FactoredMatrix::after, Release())
      .def("times_vector", &FactoredMatrix::times_vector, Release())
      .def("after_vector", &FactoredMatrix::after_vector, Release())
      .def("scaled", py::overload_cast<const at::Tensor&>(&FactoredMatrix::scaled, py::const_), Release())
      .def("scaled", py::overload_cast<double>(&FactoredMatrix::scaled, py::const_), Release())
      .def("transposed", &FactoredMatrix::transposed)
      .def("svd", &svd_of)
      .def("eigenvalues", &FactoredMatrix::eigenvalues, Release())
      .def("norm", &FactoredMatrix::norm, Release())
      .def("made_even", &FactoredMatrix::made_even, Release())
      .def("collapsed_left", &FactoredMatrix::collapsed_left, Release())
      .def("collapsed_right", &FactoredMatrix::collapsed_right, Release())
      .def("corner", &FactoredMatrix::corner, py::arg("count"), Release())
      .def("unsqueezed", &FactoredMatrix::unsqueezed, py::arg("axis"))
      .def("index", &indexed, py::arg("entries"));
  module.def("composition_scores", &composition_scores, py::arg("left"), py::arg("right"), py::arg("broadcast_axes"),
             Release());
  module.def("singular_vectors",
             py::overload_cast<const FactoredMatrix&, const at::Tensor&, int64_t>(&singular_vectors), py::arg("matrix"),
             py::arg("unembed"), py::arg("count"), Release());
  module.def("singular_vectors",
             py::overload_cast<const at::Tensor&, const at::Tensor&, int64_t, const std::optional<at::Tensor>&>(
                 &singular_vectors),
             py::arg("matrix"), py::arg("unembed"), py::arg("count"), py::arg("column_scale"), Release());
}

}  // namespace glassformer
