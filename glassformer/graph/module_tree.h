#pragma once
// The modules of the reference implementation (transformers), each with the nodes that are its input and its output.

#include <string>
#include <vector>

#include "glassformer/graph/model.h"

namespace glassformer {

/// One parameter of a module that has no modules in it.
struct ModuleParameter {
  std::string name;                  // "weight" or "bias"
  std::vector<std::string> weights;  // The weights that lie in it, one below the other; outputs first, as we have them.
  bool transposed = false;           // The module has inputs first.
};

/// A module. Its values are those of nodes: with head axes flattened into the last one, laid side by side along the
/// last axis. Where the reference gives one row for all sequences (positions and what is made of them) the nodes have
/// one for each.
struct ModuleInfo {
  std::string path;                       // "transformer.h.3.attn"; empty for the whole model.
  std::string class_name;                 // "GPT2Attention"
  std::string description;                // What its repr has in brackets: "nf=72, nx=24".
  int64_t layer = -1;                     // -1 outside the blocks.
  std::string part;                       // What it is in the universal block: `name_of(ModulePart)`.
  std::string standard;                   // nnterp's path for it, "layers.3.self_attn"; empty where there is none.
  std::vector<std::string> input;         // The first positional argument.
  std::vector<std::string> output;        // What it returns, or the first entry of that.
  std::vector<std::string> more_outputs;  // The entries after it, one node each.
  /// Whether numbers put into the input nodes change what this module sees and nothing else.
  bool input_is_private = false;
  /// The node at which a trace that computes the module on any tensor begins; empty where none can.
  std::string call_begin;
  std::vector<ModuleParameter> parameters;
};

/// The modules of a model in the order of torch's `named_modules()`, a list of blocks before its blocks. Raises
/// `UnsupportedError` for a model without a reference implementation.
std::vector<ModuleInfo> module_tree(const Model& model);

}  // namespace glassformer
