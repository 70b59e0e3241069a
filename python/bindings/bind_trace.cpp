#include <torch/csrc/utils/pybind.h>

#include "glassformer/base/errors.h"
#include "glassformer/trace/batch.h"
#include "glassformer/trace/trace.h"
#include "python/bindings/bindings.h"
#include "python/bindings/hooks.h"
#include "python/bindings/poll.h"
#include "python/bindings/regions.h"

namespace py = pybind11;

namespace glassformer {
namespace {

TraceOptions trace_options(const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& positions,
                           const std::string& keep, int64_t budget) {
  TraceOptions options;
  if (mask) options.attention_mask = *mask;
  if (positions) options.positions = *positions;
  if (keep == "all") {
    options.keep = KeepValues::kAll;
  } else if (keep == "needed") {
    options.keep = KeepValues::kNeeded;
  } else if (keep != "budget") {
    throw InputError("keep is '" + keep + "'; expected 'budget', 'all' or 'needed'");
  }
  options.budget_bytes = budget;
  options.poll = python_poll();
  return options;
}

using KeysAndValues = std::vector<std::pair<at::Tensor, at::Tensor>>;

Past past_of(const KeysAndValues& given) {
  if (given.empty()) throw ShapeError("past: expected keys and values of every layer; found none");
  Past past;
  for (const auto& [k, v] : given) past.push_back({k, v});
  return past;
}

std::vector<Trace*> pointers(const py::iterable& traces) {
  std::vector<Trace*> list;
  for (const py::handle trace : traces) list.push_back(trace.cast<Trace*>());
  return list;
}

template <typename Traces>
void put_hook(Traces& traces, const std::string& node, const py::object& function,
              const std::vector<int64_t>& segments) {
  traces.hook(node, python_hook(function), {segments});
}

}  // namespace

void bind_trace(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  bind_hook_call(module);
  py::class_<Trace>(module, "Trace")
      .def(py::init([](const std::shared_ptr<Model>& model, const at::Tensor& tokens,
                       const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& positions,
                       const std::string& keep, int64_t budget, const std::optional<KeysAndValues>& past) {
             TraceOptions options = trace_options(mask, positions, keep, budget);
             if (past) options.past = past_of(*past);
             return Trace(model, tokens, options);
           }),
           py::arg("model"), py::arg("tokens"), py::arg("attention_mask") = py::none(),
           py::arg("positions") = py::none(), py::arg("keep") = "budget", py::arg("budget_bytes") = 0,
           py::arg("past") = py::none())
      .def_static(
          "from_node",
          [](const std::shared_ptr<Model>& model, const std::string& node, const at::Tensor& value,
             const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& positions, const std::string& keep,
             int64_t budget) {
            return Trace::from_node(model, node, value, trace_options(mask, positions, keep, budget));
          },
          py::arg("model"), py::arg("node"), py::arg("value"), py::arg("attention_mask") = py::none(),
          py::arg("positions") = py::none(), py::arg("keep") = "budget", py::arg("budget_bytes") = 0)
      .def_property_readonly("batch", &Trace::batch)
      .def_property_readonly("length", &Trace::length)
      .def_property_readonly("begin", &Trace::begin)
      .def_property_readonly("begin_node", &Trace::begin_node)
      .def("tokens", &Trace::tokens, Release())
      .def("past",
           [](Trace& trace) {
             Past past;
             {
               const py::gil_scoped_release release;
               past = trace.past();
             }
             py::list layers;
             for (const LayerPast& layer : past) layers.append(py::make_tuple(layer.k, layer.v));
             return layers;
           })
      .def("read", &Trace::read, py::arg("node"), py::arg("positions") = py::none(), Release())
      .def("logits_at", &Trace::logits_at, py::arg("position"), Release())
      .def(
          "set",
          [](Trace& trace, const std::string& node, const at::Tensor& value, const py::object& index) {
            trace.set(node, value, region_of(index, node_shape(trace.model(), node, trace.batch(), trace.length())));
          },
          py::arg("node"), py::arg("value"), py::arg("region") = py::none())
      .def(
          "set_at",
          [](Trace& trace, const std::vector<int64_t>& positions, const std::string& node, const at::Tensor& value) {
            trace.at(positions).set(node, value);
          },
          py::arg("positions"), py::arg("node"), py::arg("value"))
      .def(
          "edit",
          [](Trace& trace, const std::string& node, const py::function& change) {
            trace.edit(node, [&](const at::Tensor& value) {
              const py::gil_scoped_acquire gil;
              return tensor_returned(change(value), value, node);
            });
          },
          py::arg("node"), py::arg("change"), Release())
      .def("hook", &put_hook<Trace>, py::arg("node"), py::arg("function"), py::arg("segments"))
      .def("run", &Trace::run, py::arg("until"), Release())
      .def(
          "hook_gradient",
          [](Trace& trace, const std::string& node, const py::object& function) {
            trace.hook_gradient(node, python_hook(function));
          },
          py::arg("node"), py::arg("function"))
      .def("require_grad", &Trace::require_grad, py::arg("on"))
      .def_property_readonly("requires_grad", &Trace::requires_grad)
      .def(
          "grad",
          [](Trace& trace, const at::Tensor& scalar, const std::vector<std::string>& names) {
            return trace.grad(scalar, names);
          },
          py::arg("scalar"), py::arg("names"), Release())
      .def("hand_out", &Trace::hand_out, py::arg("node"), py::arg("positions") = py::none(), Release())
      .def("collect", &Trace::collect, Release())
      .def("let_go", &Trace::let_go, Release())
      .def(
          "assigned",
          [](Trace& trace, const at::Tensor& held, const py::object& index, const at::Tensor& numbers,
             const std::optional<at::Tensor>& value) {
            return trace.assigned(held, region_of(index, held.sizes().vec()), numbers, value.value_or(at::Tensor()));
          },
          py::arg("held"), py::arg("region"), py::arg("numbers"), py::arg("value"))
      .def_property_readonly("n_segments", &Trace::n_segments)
      .def("unset", &Trace::unset, py::arg("node"))
      .def("fork", py::overload_cast<>(&Trace::fork, py::const_))
      .def(
          "fork_onto", [](const Trace& trace, const std::shared_ptr<Model>& model) { return trace.fork(model); },
          py::arg("model"))
      .def("append", &Trace::append, py::arg("given"))
      .def("truncate", &Trace::truncate, py::arg("length"))
      .def("explain", &Trace::explain, py::arg("node"), Release())
      .def("edited", &Trace::edited)
      .def("work",
           [](const Trace& trace) {
             py::dict work;
             for (const Work& entry : trace.work()) work[py::str(entry.node)] = entry.rows;
             return work;
           })
      .def("reset_work", &Trace::reset_work);
  module.def(
      "read_all",
      [](const py::iterable& traces, const std::string& node, const Positions& positions) {
        const std::vector<Trace*> list = pointers(traces);
        const py::gil_scoped_release release;
        return read_all(list, node, positions);
      },
      py::arg("traces"), py::arg("node"), py::arg("positions") = py::none());
  py::class_<Batch>(module, "Batch")
      .def(py::init([](const std::shared_ptr<Model>& model, const std::vector<at::Tensor>& prompts,
                       const std::string& keep, int64_t budget) {
             std::vector<Trace> traces;
             for (const at::Tensor& tokens : prompts)
               traces.emplace_back(model, tokens, trace_options({}, {}, keep, budget));
             return Batch(std::move(traces));
           }),
           py::arg("model"), py::arg("prompts"), py::arg("keep") = "budget", py::arg("budget_bytes") = 0)
      .def_property_readonly("length", &Batch::length)
      .def("__len__", &Batch::size)
      .def(
          "trace", [](Batch& batch, size_t index) -> Trace& { return batch.traces().at(index); },
          py::return_value_policy::reference_internal)
      .def("mask", &Batch::mask)
      .def("read", &Batch::read, py::arg("node"), Release())
      .def("read_at", &Batch::read_at, py::arg("node"), py::arg("position"), Release())
      .def("logits_at", &Batch::logits_at, py::arg("position"), Release())
      .def(
          "set",
          [](Batch& batch, const std::string& node, const at::Tensor& value, const py::object& index) {
            batch.set(node, value, region_of(index, node_shape(batch.model(), node, batch.size(), batch.length())));
          },
          py::arg("node"), py::arg("value"), py::arg("region") = py::none())
      .def("hook", &put_hook<Batch>, py::arg("node"), py::arg("function"), py::arg("segments"))
      .def("run", &Batch::run, py::arg("until"), Release())
      .def("unset", &Batch::unset, py::arg("node"))
      .def("fork", py::overload_cast<>(&Batch::fork, py::const_))
      .def(
          "fork_onto", [](const Batch& batch, const std::shared_ptr<Model>& model) { return batch.fork(model); },
          py::arg("model"));
}

}  // namespace glassformer
