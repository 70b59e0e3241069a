#pragma once
// The residual stream as the sum of what is written into it: heads, neurons, embeddings, biases. Gradients flow through
// everything.

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

namespace glassformer {

/// A norm whose scale is held as a run computed it, which makes it linear: (x - mean) / scale * weight.
struct FrozenNorm {
  at::Tensor scale;     // `… 1`: batch and positions, as what is divided has them
  bool center = false;  // Layer norms subtract the mean, RMS norms don't.
  at::Tensor weight;    // `d_model`; undefined: all ones
};

/// Each vector of a stack `part … d_model` through the norm. Throws `ShapeError` where the scale is for another batch
/// or for other positions: it has the stack's axes without the first, or fewer.
at::Tensor normed(const at::Tensor& stack, const FrozenNorm& norm);

/// What each head writes: z `… head d_head` times W_O `head d_head d_model`, `… head d_model`. Throws `ShapeError`
/// where they don't fit.
at::Tensor head_results(const at::Tensor& z, const at::Tensor& W_O);

/// What each neuron writes: its activation (`… neuron`) times its row of W_out (`neuron d_model`), `… neuron d_model`.
/// Of one neuron: `…`, `d_model`, `… d_model`. With a projection `d_model` or `d_model out` of what is written, the
/// last axis is gone or `out`. `after` is the norm between the MLP and the stream, if there is one. Throws `ShapeError`
/// where they don't fit.
at::Tensor neuron_results(const at::Tensor& activations, const at::Tensor& W_out,
                          const std::optional<at::Tensor>& projection = {},
                          const std::optional<FrozenNorm>& after = {});

/// The products of each vector of a stack `part … d_model`, through the norm, with directions `… d_model` (minus the
/// directions `versus`): `part …`. Throws `ShapeError` where the directions are for another batch or for other
/// positions.
at::Tensor logit_attributions(const at::Tensor& stack, const at::Tensor& directions,
                              const std::optional<at::Tensor>& versus = {}, const std::optional<FrozenNorm>& norm = {});

/// Parts of the residual stream in a row, laid out only when all is known that is asked of them: neurons stay
/// activations and rows, and norms and projections go into these. Throws `ShapeError` for a part whose batch, positions
/// or d_model are not those of the first.
class ResidualParts {
 public:
  /// Each of a stack `part … d_model`.
  void add(const at::Tensor& stack);
  /// Each head's results, `… head d_model`; `after` is the norm between attention and the stream.
  void add_heads(const at::Tensor& results, const std::optional<FrozenNorm>& after = {});
  /// Each neuron of `activations` (`… neuron`) and `W_out` (`neuron d_model`).
  void add_neurons(const at::Tensor& activations, const at::Tensor& W_out, const std::optional<FrozenNorm>& after = {});
  /// The sum of biases `d_model`, each through its norm between sublayer and stream, as one part. Throws `InputError`
  /// where no part has said for which places.
  void add_bias(const std::vector<std::pair<at::Tensor, std::optional<FrozenNorm>>>& biases);
  /// What is left of `whole` (`… d_model`) without the parts so far.
  void add_rest(const at::Tensor& whole);
  /// All parts, through the norm and then projected as in `neuron_results`: `part … d_model` (`part …`, `part … out`).
  /// In memory of its own. Throws `InputError` for no parts.
  at::Tensor stack(const std::optional<FrozenNorm>& norm = {}, const std::optional<at::Tensor>& projection = {}) const;

 private:
  // Either a stack, or neurons' activations `… neuron` and rows `neuron d_model`. A rest is a stack of the whole.
  struct Block {
    at::Tensor stack, activations, rows;
    bool rest = false;
    int64_t size() const { return stack.defined() ? stack.size(0) : rows.size(0); }
  };
  struct Asked;
  void add_block(Block block);
  at::Tensor projected(const Asked& asked) const;
  std::vector<Block> with_rests() const;
  static at::Tensor written(const Asked& asked, const std::vector<Block>& blocks, const std::vector<int64_t>& shape);
  static std::vector<Block> with_neurons_joined(const std::vector<Block>& blocks);
  std::vector<Block> blocks_;
  std::vector<int64_t> shape_;  // `… d_model`
};

}  // namespace glassformer
