#pragma once
// The residual stream of a trace as the sum of what is written into it.

#include <optional>
#include <string>
#include <vector>

#include "glassformer/analysis/residual_parts.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

struct DecompositionOptions {
  std::optional<int64_t> layer = {};  // The stream before this block; missing: before the final norm.
  bool heads = false;                 // Each head in the place of its layer's attention; biases are a part then.
  bool neurons = false;               // Each neuron in the place of its layer's MLP; biases are a part then.
  Positions positions = {};           // Missing: all.
};

struct PartLabel {
  std::string name;  // "embed", "pos_embed", "3.attn", "3.5" (a head), "3.mlp", "3.mlp.140" (a neuron), "bias"
  std::string kind;  // "embed", "attn", "head", "mlp", "neuron", "bias"
  int64_t layer = -1, index = -1;  // The index is the head's or the neuron's.
};

/// Parts in the order in which they are written, biases last; `parts.stack()` has them as `part batch pos d_model`.
struct Decomposition {
  std::vector<PartLabel> labels;
  ResidualParts parts;
};

/// What a trace has written into its residual stream, through the norms behind attention and MLP with the scales that
/// they have here. The parts sum to the stream; where an edit changes a sum of them (the stream, or what attention adds
/// while heads are parts), `parts.add_rest(stream)` makes what it adds one more part. Throws `InputError` for a layer
/// that isn't there, and `UnsupportedError` for neurons of experts, and heads or neurons behind two norms.
Decomposition decompose_stream(Trace& trace, const DecompositionOptions& options = {});

/// The norm through which block `layer` (missing: the unembedding) reads the stream, with the scales that it has here
/// and its weight, but without its bias. Nothing where the stream is read without a norm.
std::optional<FrozenNorm> reading_norm(Trace& trace, std::optional<int64_t> layer = std::nullopt,
                                       const Positions& positions = std::nullopt);

}  // namespace glassformer
