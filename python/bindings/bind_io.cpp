#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "glassformer/base/errors.h"
#include "glassformer/io/gguf.h"
#include "glassformer/io/quantised.h"
#include "glassformer/io/safetensors.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

/// Tokens in a GGUF file are sometimes parts of a character.
py::object text_of(const std::string& bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(text);
}

py::object object_of(const std::string& value) { return text_of(value); }

py::object object_of(const std::vector<std::string>& values) {
  py::list list(values.size());
  for (size_t i = 0; i < values.size(); ++i) list[i] = text_of(values[i]);
  return list;
}

template <typename T>
py::object object_of(const T& value) {
  return py::cast(value);
}

py::dict metadata_of(const GgufFile& file) {
  py::dict metadata;
  for (const auto& [key, value] : file.metadata) {
    metadata[text_of(key)] = std::visit([](const auto& held) { return object_of(held); }, value);
  }
  return metadata;
}

const char* numpy_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return "float64";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kInt16:
      return "int16";
    case DType::kInt8:
      return "int8";
    case DType::kUInt8:
      return "uint8";
    case DType::kBool:
      return "bool";
    default:
      return "float32";
  }
}

py::array array_of(const StoredTensor& tensor) {
  const std::string type = numpy_type(tensor.dtype);
  py::array array(py::dtype(type), std::vector<py::ssize_t>(tensor.shape.begin(), tensor.shape.end()));
  void* out = array.mutable_data();
  const py::gil_scoped_release release;
  if (type == "float32") {
    dequantise(tensor.dtype, tensor.data, tensor.count(), static_cast<float*>(out));
  } else if (tensor.bytes > 0) {
    std::memcpy(out, tensor.data, tensor.bytes);
  }
  return array;
}

}  // namespace

void bind_io(py::module_& module) {
  py::class_<StoredTensor>(module, "StoredTensor", "A tensor as it lies in a file.")
      .def_readonly("name", &StoredTensor::name)
      .def_property_readonly("dtype", [](const StoredTensor& tensor) { return std::string(layout(tensor.dtype).name); })
      .def_property_readonly("shape", [](const StoredTensor& tensor) { return py::tuple(py::cast(tensor.shape)); })
      .def_readonly("nbytes", &StoredTensor::bytes)
      .def("numpy", &array_of, "A copy: integers, booleans and float64 as they are, everything else as float32.");
  py::class_<GgufFile>(module, "GgufFile", "A GGUF file: its metadata and its tensors.")
      .def_property_readonly("path", &GgufFile::path)
      .def_readonly("version", &GgufFile::version)
      .def_property_readonly("metadata", &metadata_of)
      .def_readonly("tensors", &GgufFile::tensors);
  const auto map = [](const std::string& path) { return MappedFile::open(path); };
  module.def(
      "read_gguf", [map](const std::string& path) { return read_gguf(map(path)); }, py::arg("path"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "read_safetensors", [map](const std::string& path) { return read_safetensors(map(path)); }, py::arg("path"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace glassformer
