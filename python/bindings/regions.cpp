#include "python/bindings/regions.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/base/errors.h"

namespace py = pybind11;

namespace glassformer {
namespace {

std::vector<int64_t> indices_of(const py::handle& item, int64_t size) {
  std::vector<int64_t> indices;
  if (py::isinstance<py::slice>(item)) {
    py::ssize_t start = 0, stop = 0, step = 0, count = 0;
    if (!py::reinterpret_borrow<py::slice>(item).compute(size, &start, &stop, &step, &count))
      throw py::error_already_set();
    for (py::ssize_t i = 0; i < count; ++i) indices.push_back(start + i * step);
    return indices;
  }
  const py::object list =
      py::hasattr(item, "tolist") ? py::object(item.attr("tolist")()) : py::reinterpret_borrow<py::object>(item);
  int64_t position = 0;
  for (const py::handle entry : list) {
    if (!py::isinstance<py::bool_>(entry))
      indices.push_back(entry.cast<int64_t>());
    else if (entry.cast<bool>())
      indices.push_back(position);
    ++position;
  }
  return indices;
}

}  // namespace

std::vector<int64_t> node_shape(const Model& model, const std::string& name, int64_t batch, int64_t length) {
  std::vector<int64_t> shape;
  for (const Axis& axis : model.graph().node(model.graph().find(name)).axes)
    shape.push_back(axis.word == "batch" ? batch : axis.size == 0 ? length : axis.size);
  return shape;
}

Region region_of(const py::object& index, const std::vector<int64_t>& shape) {
  if (index.is_none() || index.ptr() == Py_Ellipsis) return {};
  if (THPVariable_Check(index.ptr()) && index.cast<at::Tensor>().scalar_type() == at::kBool &&
      index.cast<at::Tensor>().dim() == static_cast<int64_t>(shape.size()))
    return Region::where(index.cast<at::Tensor>());
  const py::tuple items =
      py::isinstance<py::tuple>(index) ? py::reinterpret_borrow<py::tuple>(index) : py::make_tuple(index);
  size_t given = 0;
  for (const py::handle item : items) given += item.ptr() != Py_Ellipsis;
  if (given > shape.size()) throw InputError(str("found ", given, " indices; the node has ", shape.size(), " axes"));
  Region region;
  size_t axis = 0;
  for (const py::handle item : items) {
    if (item.ptr() == Py_Ellipsis) {
      axis += shape.size() - given;
      continue;
    }
    if (PyObject_RichCompareBool(item.ptr(), py::slice(std::nullopt, std::nullopt, std::nullopt).ptr(), Py_EQ) == 1) {
      ++axis;  // All of it, however long it is.
      continue;
    }
    if (py::isinstance<py::slice>(item) && shape[axis] == kAnyLength)
      throw InputError("the number of positions changes from step to step: give them as a list, or all of them");
    if (item.is_none()) throw InputError("a region can't add axes (None)");
    const bool single = py::isinstance<py::int_>(item) && !py::isinstance<py::bool_>(item);
    const bool zero_dim = THPVariable_Check(item.ptr()) && item.cast<at::Tensor>().dim() == 0;
    if (single || zero_dim) {
      region.at_axis(axis, {py::reinterpret_steal<py::int_>(PyNumber_Long(item.ptr())).cast<int64_t>()}, true);
    } else {
      region.at_axis(axis, indices_of(item, shape[axis]));
    }
    ++axis;
  }
  return region;
}

}  // namespace glassformer
