#pragma once
// A model ready to be traced: config, graph, weights and tokenizer. Any number of threads may trace it. Only its
// weights can change: in place, while no thread computes.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/graph/extension.h"

namespace glassformer {

class Tokenizer;

struct LoadOptions {
  at::ScalarType dtype =
      at::kFloat;  // float32, float64, bfloat16 or float16: what weights are turned into and used in.
  at::Device device = at::kCPU;
  // Of tensors that someone else holds: gradients flow back to them; see `Weights::from_tensors`.
  bool differentiable = false;
  std::shared_ptr<const Tokenizer> tokenizer =
      {};  // In the place of the one in the files, which is not looked at then.
};

/// What a model of one's own needs beside its nodes.
struct DefineOptions {
  int64_t d_vocab = 0;  // Tokens go from 0 to d_vocab - 1.
  int64_t n_ctx = 0;    // The longest input in tokens.
  std::string name = "custom";
  LoadOptions load = {};
};

/// "float32", "bfloat16", …
const char* dtype_name(at::ScalarType dtype);

class Model : public std::enable_shared_from_this<Model> {
 public:
  /// Opens a model folder, a GGUF file, or the name of a model in the local Hugging Face cache. Weights are mapped, and
  /// read when a step first needs them. Raises `FileError`; `UnsupportedError` also for a dtype or a device that is not
  /// there. A tokenizer of an unsupported kind leaves the model without one.
  static std::shared_ptr<const Model> load(const std::string& name_or_path, const LoadOptions& options = {});
  /// A model from config.json's text and tensors that someone else holds, by the names of the architecture's files.
  static std::shared_ptr<const Model> from_tensors(const std::string& config_json,
                                                   const std::map<std::string, at::Tensor>& tensors,
                                                   const LoadOptions& options = {});
  /// This model in another dtype or on another device, with its weights as they are now; itself where nothing differs.
  /// Traces stay with the model that they were made of. `UnsupportedError`.
  std::shared_ptr<const Model> to(const LoadOptions& options) const;
  /// This model with another config and with these weights, by the names and of the shapes of `weight_specs`: in place
  /// where dtype and device are the model's. `UnsupportedError` where it has nodes of its own; `NameError`,
  /// `ShapeError`.
  std::shared_ptr<const Model> with_weights(const ModelConfig& config,
                                            const std::map<std::string, at::Tensor>& weights) const;
  /// Tells the traces of this model that weights were changed in a way that torch does not count: through `data`, a
  /// pointer or NumPy. All other changes in place count by themselves.
  void weights_changed() const { weights_->declare_change(); }

  /// A model of nothing but these nodes, which read each other and the inputs `hook_tokens`, `positions` and
  /// `attention_mask`; given in computing order. Predictions are a node "logits". Raises what `extended` raises.
  static std::shared_ptr<const Model> define(const std::vector<NodeSpec>& nodes,
                                             const std::map<std::string, at::Tensor>& weights,
                                             const DefineOptions& options);
  /// This model with further nodes and splices, on the same weights (and those that the extension brings) and the same
  /// tokenizer. This one stays as it is. Raises `InputError`, `NameError`, `ShapeError`: see `extend_graph`.
  std::shared_ptr<const Model> extended(const Extension& extension) const;

  const std::string& path() const { return path_; }  // The file or folder that it lies in; empty for tensors given.
  const std::string& name() const { return name_; }  // The file's or folder's own name.
  const ModelConfig& config() const { return config_; }
  const Graph& graph() const { return *graph_; }
  const Weights& weights() const { return *weights_; }
  /// The tokenizer; `InputError` where the model came without one, `UnsupportedError` where that is of an unsupported
  /// kind.
  const Tokenizer& tokenizer() const;
  std::shared_ptr<const Tokenizer> tokenizer_or_null() const { return tokenizer_; }
  /// Tokens that end a generated text.
  const std::vector<int64_t>& eos_ids() const { return eos_ids_; }

 private:
  Model() = default;

  std::string path_, name_;
  ModelConfig config_;
  std::shared_ptr<const Weights> weights_;
  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string why_no_tokenizer_;  // What is unsupported about the one in the files.
  std::vector<int64_t> eos_ids_;
  bool graph_is_own_ = false;  // It has nodes that a user made.
};

}  // namespace glassformer
