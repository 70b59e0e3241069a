#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glassformer/base/errors.h"
#include "glassformer/graph/model.h"
#include "glassformer/text/tokenizer.h"
#include "python/bindings/bindings.h"
#include "python/bindings/hooks.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// name, axes, (input, whether it reaches up to its row), run, weights, text
using GivenNode = std::tuple<std::string, std::string, std::vector<std::pair<std::string, bool>>, py::object,
                             std::vector<std::string>, std::string>;
// node, name, encode, decode, reads, axes
using GivenSplice = std::tuple<std::string, std::string, py::object, py::object, std::string, std::string>;

at::Tensor tensor_of(const py::object& returned, const std::string& what) {
  if (!THPVariable_Check(returned.ptr()))
    throw InputError(str(what, " returned ", Py_TYPE(returned.ptr())->tp_name, "; expected a tensor"));
  return returned.cast<at::Tensor>();
}

// Calls `function(*inputs, *weights)`, with `positions=` where an input reaches up to its row.
std::function<at::Tensor(const StepCall&)> python_step(const GivenNode& given) {
  const auto& [name, axes, inputs, function, weights, text] = given;
  bool reaches_up = false;
  for (const auto& [input, up] : inputs) reaches_up = reaches_up || up;
  return [held = held_with_gil(function), what = str("the step of node '", name, "'"), weights = weights,
          reaches_up](const StepCall& call) {
    const py::gil_scoped_acquire gil;
    py::list arguments;
    for (const at::Tensor& input : call.inputs) arguments.append(py::cast(input));
    for (const std::string& weight : weights) arguments.append(py::cast(call.weights.get(weight)));
    py::dict named;
    if (reaches_up)
      named["positions"] =
          py::cast(at::tensor(call.rows.rows(), at::TensorOptions(at::kLong)).to(call.weights.device()));
    return tensor_of((*held)(*arguments, **named), what);
  };
}

std::function<at::Tensor(const at::Tensor&)> python_map(const py::object& function, const std::string& what) {
  return [held = held_with_gil(function), what](const at::Tensor& value) {
    const py::gil_scoped_acquire gil;
    return tensor_of((*held)(value), what);
  };
}

std::vector<NodeSpec> nodes_of(const std::vector<GivenNode>& given) {
  std::vector<NodeSpec> nodes;
  for (const GivenNode& one : given) {
    const auto& [name, axes, inputs, function, weights, text] = one;
    NodeSpec spec{name, axes, {}, python_step(one), weights, text};
    for (const auto& [input, up] : inputs) spec.inputs.push_back({input, up ? Reach::kUpToRow : Reach::kSameRow});
    nodes.push_back(std::move(spec));
  }
  return nodes;
}

}  // namespace

void bind_extend(py::module_& module) {
  module.def(
      "extended",
      [](const std::shared_ptr<Model>& model, const std::vector<GivenNode>& nodes,
         const std::vector<GivenSplice>& splices, const std::map<std::string, at::Tensor>& weights) {
        Extension extension{nodes_of(nodes), {}, weights};
        for (const auto& [node, name, encode, decode, reads, axes] : splices)
          extension.splices.push_back({node, name, python_map(encode, "encode of '" + name + "'"),
                                       python_map(decode, "decode of '" + name + "'"), reads, axes});
        return std::const_pointer_cast<Model>(model->extended(extension));
      },
      py::arg("model"), py::arg("nodes"), py::arg("splices"), py::arg("weights"));
  module.def(
      "define",
      [](const std::vector<GivenNode>& nodes, const std::map<std::string, at::Tensor>& weights, int64_t d_vocab,
         int64_t n_ctx, const std::string& name, std::shared_ptr<const Tokenizer> tokenizer, at::ScalarType dtype,
         at::Device device) {
        return std::const_pointer_cast<Model>(Model::define(
            nodes_of(nodes), weights, {d_vocab, n_ctx, name, {dtype, device, false, std::move(tokenizer)}}));
      },
      py::arg("nodes"), py::arg("weights"), py::arg("d_vocab"), py::arg("n_ctx"), py::arg("name"), py::arg("tokenizer"),
      py::arg("dtype"), py::arg("device"));
}

}  // namespace glassformer
