#pragma once
// Nodes of one's own: further nodes on a model's graph, sparse autoencoders spliced into it, and whole models.

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/graph/graph.h"

namespace glassformer {

/// An input of a node, by any of its names.
struct InputSpec {
  std::string node;
  Reach reach = Reach::kSameRow;
};

/// A node of one's own.
struct NodeSpec {
  std::string name;
  std::string axes;  // "batch pos", then words with their sizes: "batch pos head=4 d_head=16".
  std::vector<InputSpec> inputs;
  /// Computes the node from `call.inputs`, each with all its axes, and `call.weights.get(name)`. The positions of an
  /// input and of the output are those in `call.rows`; of an input with `Reach::kUpToRow` they are all from 0 to the
  /// last of these. Several traces may lie side by side as one batch. It must be a pure function, and give each row
  /// from the rows that it reaches and nothing else. The inputs are its own copies. The output is turned into the
  /// model's dtype; another shape than the node's is a `ShapeError`. What it throws goes through to the read.
  std::function<at::Tensor(const StepCall& call)> run;
  std::vector<std::string> weights = {};  // The names of those that it uses.
  std::string text = "run";               // What `explain` calls it.
};

/// A sparse autoencoder on a node. `<name>.hook_in` is what the node was computed as, `<name>.hook_acts` the features,
/// `<name>.hook_recon` what `decode` makes of them, `<name>.hook_error` what that lacks. The node itself is recon +
/// error from then on where features, reconstruction or error are edited, and else `<name>.hook_in`, bit for bit.
struct SpliceSpec {
  std::string node;  // By any of its names; it must have positions and be computed.
  std::string name;  // "sae3"
  /// Features (`batch pos …`) of a value, and back. Pure functions of each position.
  std::function<at::Tensor(const at::Tensor& value)> encode;
  std::function<at::Tensor(const at::Tensor& features)> decode;
  std::string reads =
      {};                 // The node that is encoded where it isn't the spliced one (of a transcoder: the MLP's input).
  std::string axes = {};  // Of the features; found out by calling `encode` on zeros where it is empty.
};

/// What is put onto a graph: first the splices, in order, then the nodes. A node stands right behind its last input.
struct Extension {
  std::vector<NodeSpec> nodes = {};
  std::vector<SpliceSpec> splices = {};
  std::map<std::string, at::Tensor> weights = {};  // For the nodes, by name.
};

/// `base` and what `extension` puts onto it; `weights` are `base`'s and the extension's. `InputError` for names that
/// mean a node already, inputs that come later and axes without sizes; `NameError` for unknown inputs and weights;
/// `ShapeError` where a decoder doesn't give back what it was made from.
std::shared_ptr<const Graph> extend_graph(const Graph& base, const Extension& extension, const Weights& weights);
/// A graph of these nodes and the inputs `hook_tokens`, `positions` and `attention_mask`.
std::shared_ptr<const Graph> define_graph(const std::vector<NodeSpec>& nodes, const Weights& weights, int64_t n_ctx);

}  // namespace glassformer
