#include <torch/csrc/utils/pybind.h>

#include "glassformer/arch/architecture.h"
#include "glassformer/graph/model.h"
#include "glassformer/graph/module_tree.h"
#include "glassformer/text/tokenizer.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

// The weights that have a bias beside them, as the nodes call them.
std::vector<std::string> names_of(const Biases& biases) {
  const std::pair<const char*, bool> all[] = {{"q", biases.q},
                                              {"k", biases.k},
                                              {"v", biases.v},
                                              {"o", biases.o},
                                              {"mlp_in", biases.mlp_in},
                                              {"mlp_gate", biases.mlp_gate},
                                              {"mlp_out", biases.mlp_out},
                                              {"experts", biases.experts},
                                              {"unembed", biases.unembed}};
  std::vector<std::string> names;
  for (const auto& [name, there] : all)
    if (there) names.emplace_back(name);
  return names;
}

}  // namespace

void bind_model(py::module_& module) {
  py::class_<Rope>(module, "Rope",
                   "Rotary position embedding: how many dimensions of a head turn, by which base and scaling.")
      .def_readonly("dims", &Rope::dims)
      .def_readonly("base", &Rope::base)
      .def_readonly("adjacent_pairs", &Rope::adjacent_pairs)
      .def_readonly("factor", &Rope::factor)
      .def_readonly("original_n_ctx", &Rope::original_n_ctx)
      .def_readonly("low_freq_factor", &Rope::low_freq_factor)
      .def_readonly("high_freq_factor", &Rope::high_freq_factor)
      .def_readonly("beta_fast", &Rope::beta_fast)
      .def_readonly("beta_slow", &Rope::beta_slow)
      .def_readonly("truncate", &Rope::truncate)
      .def_readonly("divisors", &Rope::divisors)
      .def_readonly("attention_factor", &Rope::attention_factor)
      .def_property_readonly("scaling", [](const Rope& rope) { return name_of(rope.scaling); });
  py::class_<ModelConfig>(module, "ModelConfig", "What a model is: its sizes and the switches of its architecture.")
      .def_readonly("architecture", &ModelConfig::architecture)
      .def_readonly("n_layers", &ModelConfig::n_layers)
      .def_readonly("n_heads", &ModelConfig::n_heads)
      .def_readonly("n_kv_heads", &ModelConfig::n_kv_heads)
      .def_readonly("d_model", &ModelConfig::d_model)
      .def_readonly("d_head", &ModelConfig::d_head)
      .def_readonly("d_mlp", &ModelConfig::d_mlp)
      .def_readonly("d_vocab", &ModelConfig::d_vocab)
      .def_readonly("d_vocab_out", &ModelConfig::d_vocab_out)
      .def_readonly("n_ctx", &ModelConfig::n_ctx)
      .def_readonly("norm_weights", &ModelConfig::norm_weights)
      .def_readonly("norm_eps", &ModelConfig::norm_eps)
      .def_readonly("gated_mlp", &ModelConfig::gated_mlp)
      .def_property_readonly("n_experts", [](const ModelConfig& c) { return c.experts.count; })
      .def_property_readonly("experts_per_token", [](const ModelConfig& c) { return c.experts.per_token; })
      .def_readonly("mlp_norm", &ModelConfig::mlp_norm)
      .def_readonly("attention_only", &ModelConfig::attention_only)
      .def_readonly("parallel", &ModelConfig::parallel)
      .def_readonly("score_cap", &ModelConfig::score_cap)
      .def_readonly("logit_cap", &ModelConfig::logit_cap)
      .def_readonly("tied_unembed", &ModelConfig::tied_unembed)
      .def_readonly("rope", &ModelConfig::rope)
      .def_property_readonly("norm",
                             [](const ModelConfig& c) {
                               return c.norm == Norm::kNone ? "none" : c.norm == Norm::kRmsNorm ? "rms" : "layer";
                             })
      .def_property_readonly("positions", [](const ModelConfig& c) { return name_of(c.positions); })
      .def_property_readonly("activation", [](const ModelConfig& c) { return name_of(c.activation); })
      .def_property_readonly("windows",
                             [](const ModelConfig& c) {
                               std::vector<int64_t> windows;
                               for (const LayerConfig& layer : c.layers) windows.push_back(layer.window);
                               return windows;
                             })
      .def_property_readonly("attention_scales",
                             [](const ModelConfig& c) {
                               std::vector<double> scales;
                               for (const LayerConfig& layer : c.layers) scales.push_back(layer.attention_scale);
                               return scales;
                             })
      .def_property_readonly("biases", [](const ModelConfig& c) { return names_of(c.biases); });
  module.def("architectures", [] {
    std::vector<std::pair<std::vector<std::string>, std::string>> list;
    for (const Architecture& architecture : architectures())
      list.emplace_back(architecture.model_types, architecture.gguf_name);
    return list;
  });
  module.def(
      "describe",
      [](const std::string& config_json, const std::string& path) { return describe(config_json, path).config; },
      py::arg("config_json"), py::arg("path"));
  module.def(
      "node_steps",
      [](const std::string& config_json) {
        const DescribedModel described = describe(config_json, "config.json");
        const auto weights = Weights::without_values(described);
        std::vector<std::tuple<std::string, std::string, std::vector<std::string>>> nodes;
        const auto graph = Graph::build(described.config, *weights);
        for (const Node& node : graph->nodes()) {
          std::vector<std::string> steps;
          for (const Step* step : {&node.open, &node.fast})
            if (step->run) steps.push_back(step->text);
          nodes.emplace_back(node.name, shape_words(node), std::move(steps));
        }
        return nodes;
      },
      py::arg("config_json"));
  py::class_<ModuleParameter>(module, "ModuleParameter", "A parameter of a module, and the weights that lie in it.")
      .def_readonly("name", &ModuleParameter::name)
      .def_readonly("weights", &ModuleParameter::weights)
      .def_readonly("transposed", &ModuleParameter::transposed);
  py::class_<ModuleInfo>(module, "ModuleInfo", "A module of the reference implementation, and its nodes.")
      .def_readonly("path", &ModuleInfo::path)
      .def_readonly("class_name", &ModuleInfo::class_name)
      .def_readonly("description", &ModuleInfo::description)
      .def_readonly("layer", &ModuleInfo::layer)
      .def_readonly("part", &ModuleInfo::part)
      .def_readonly("standard", &ModuleInfo::standard)
      .def_readonly("input", &ModuleInfo::input)
      .def_readonly("output", &ModuleInfo::output)
      .def_readonly("more_outputs", &ModuleInfo::more_outputs)
      .def_readonly("input_is_private", &ModuleInfo::input_is_private)
      .def_readonly("call_begin", &ModuleInfo::call_begin)
      .def_readonly("parameters", &ModuleInfo::parameters);
  py::class_<Model, std::shared_ptr<Model>>(module, "Model")
      .def_static(
          "load",
          [](const std::string& path, at::ScalarType dtype, at::Device device,
             std::shared_ptr<const Tokenizer> tokenizer) {
            return std::const_pointer_cast<Model>(Model::load(path, {dtype, device, false, std::move(tokenizer)}));
          },
          py::arg("path"), py::arg("dtype"), py::arg("device"), py::arg("tokenizer") = nullptr,
          py::call_guard<py::gil_scoped_release>())
      .def_static(
          "from_tensors",
          [](const std::string& config, const std::map<std::string, at::Tensor>& tensors,
             std::shared_ptr<const Tokenizer> tokenizer, at::ScalarType dtype, at::Device device, bool differentiable) {
            return std::const_pointer_cast<Model>(
                Model::from_tensors(config, tensors, {dtype, device, differentiable, std::move(tokenizer)}));
          },
          py::arg("config_json"), py::arg("tensors"), py::arg("tokenizer"), py::arg("dtype"), py::arg("device"),
          py::arg("differentiable") = false)
      .def_property_readonly("path", &Model::path)
      .def_property_readonly("name", &Model::name)
      .def_property_readonly("config", &Model::config, py::return_value_policy::reference_internal)
      .def_property_readonly(
          "tokenizer", [](const Model& model) { return std::const_pointer_cast<Tokenizer>(model.tokenizer_or_null()); })
      .def("require_tokenizer", [](const Model& model) { model.tokenizer(); })
      .def_property_readonly("eos_ids", &Model::eos_ids)
      .def_property_readonly("dtype", [](const Model& model) { return model.weights().dtype(); })
      .def_property_readonly("device", [](const Model& model) { return model.weights().device(); })
      .def("n_parameters", [](const Model& model) { return model.weights().count(); })
      .def("weight_names",
           [](const Model& model) {
             std::vector<std::string> names;
             for (const WeightSpec& spec : model.weights().specs()) names.push_back(spec.name);
             return names;
           })
      .def(
          "weight", [](const Model& model, const std::string& name) { return model.weights().get(name); },
          py::arg("name"))
      .def(
          "weights_as",
          [](const Model& model, const std::string& model_type, const std::set<std::string>& names) {
            return model.weights().arranged_as(find_architecture(model_type, "weights_as"), model.config().d_head,
                                               names);
          },
          py::arg("model_type"), py::arg("names"))
      .def("weights_changed", &Model::weights_changed)
      .def(
          "to",
          [](const Model& model, at::ScalarType dtype, at::Device device) {
            return std::const_pointer_cast<Model>(model.to({dtype, device}));
          },
          py::arg("dtype"), py::arg("device"), py::call_guard<py::gil_scoped_release>())
      .def("module_tree", &module_tree)
      .def("keys_and_values",
           [](const Model& model, int64_t layer) {
             const auto [k, v] = model.graph().keys_and_values(layer);
             return std::pair(model.graph().node(k).name, model.graph().node(v).name);
           })
      .def("nodes",
           [](const Model& model) {
             std::vector<std::tuple<std::string, std::string, std::vector<int64_t>>> nodes;
             for (const Node& node : model.graph().nodes()) {
               std::vector<int64_t> sizes;
               for (const Axis& axis : node.axes) sizes.push_back(axis.size);
               nodes.emplace_back(node.name, shape_words(node), sizes);
             }
             return nodes;
           })
      .def(
          "node_name",
          [](const Model& model, const std::string& name) { return model.graph().node(model.graph().find(name)).name; },
          py::arg("name"));
}

}  // namespace glassformer
