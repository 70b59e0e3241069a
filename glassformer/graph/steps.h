#pragma once
// The mathematics of the universal block, once. Every function builds the `run` of a step; shapes are those of a step
// by row (`row` is batch and pos in one) unless said otherwise.

#include "glassformer/arch/config.h"
#include "glassformer/graph/mask.h"
#include "glassformer/graph/node.h"

namespace glassformer::steps {

using Run = std::function<at::Tensor(const StepCall&)>;

/// The input itself.
Run identity();
/// row d_model -> row head d_model: the same vector for each head.
Run repeat_heads(int64_t n_heads);
/// tokens `row` -> row d_model: the rows of the embedding.
Run embed(WeightId table);
/// The sum of all inputs, left to right.
Run sum();
/// x -> cap * tanh(x / cap).
Run soft_cap(double cap);
at::Tensor soft_capped(const at::Tensor& x, double cap);

/// row … d_model -> row … 1: the divisor of the norm: sqrt(mean(x^2) + eps), of the centred x for LayerNorm.
Run norm_scale(Norm norm, double eps);
/// (x, scale) -> x (centred for LayerNorm) / scale.
Run norm_divide(Norm norm);
/// row d_model -> row d_model: scale, divide and normalise in one, without the weight.
Run norm_whole(Norm norm, double eps);
/// row d_model -> row d_model: times the weight, plus the bias (-1: none; without a weight the input itself).
Run norm_apply(WeightId weight, WeightId bias);
/// row d_model -> row d_model: the whole norm with weight and bias.
Run norm_fused(Norm norm, double eps, WeightId weight, WeightId bias);

/// row in -> row out, or row head out/head where `n_heads` > 0, of the sum of all inputs. bias -1: none.
/// Each head comes `repeat` times, one after the other.
Run linear(WeightId weight, WeightId bias, int64_t n_heads = 0, int64_t repeat = 1);
/// row head d_model -> row head d_head: each head's own input through its own norm and its rows of the weight; a second
/// input, row d_model, is added to what comes out of the norm.
struct HeadInput {
  Norm norm;
  double eps;
  WeightId norm_weight, norm_bias, weight, bias;
  int64_t n_heads;  // Of the weight, whose heads each take `repeat` inputs.
  int64_t repeat = 1;
};
Run linear_by_head(const HeadInput& input);
/// row head d_head -> row d_model: heads side by side through the output weight.
Run merge_heads(WeightId weight, WeightId bias);
/// row head d_head -> row head d_model: each head through its columns of the output weight.
Run head_results(WeightId weight);
/// row head d_model -> row d_model: the sum over heads, plus the bias.
Run sum_heads(WeightId bias);

/// positions `row` -> row d_rotary: cosines (or sines) of the angles, each where its two dimensions are, in float32 and
/// then the model's dtype.
Run rotary_table(const Rope& rope, bool sine, at::ScalarType dtype);
/// (x: row head d_head, cos, sin) -> x with its first d_rotary dimensions turned, as two halves or by neighbours.
Run rotate(const Rope& rope);

/// row d_model -> row head d_model/head: the parts as heads, and the other way round.
Run split_heads(int64_t n_heads);
Run join_heads();
/// x, but at least -limit and at most limit.
Run clamp(double limit);
/// batch pos head d_head -> the same: the n-th position, where n > length, times log n / log length.
Run scale_by_log(int64_t length);

/// What attention needs to know beside its inputs.
struct Attention {
  int64_t n_heads, n_kv_heads;
  double scale;
  int64_t window;
  bool upcast;  // Scores and pattern in float32 whatever the dtype.
  double score_cap = 0;
  bool alibi = false;
};
/// head query_pos key_pos: key minus query position (0 for later keys), times each head's slope (Press et al., ALiBi),
/// which is 2^(-8 / heads) to the power 1, 2, ….
at::Tensor alibi_bias(int64_t n_heads, const RowSet& rows, int64_t n_keys, const at::TensorOptions& options);
/// Scores, -inf where a key may not be seen.
at::Tensor masked_scores(const at::Tensor& scores, const RowSet& rows, const MaskOptions& options);
/// (q: batch query_pos head d_head, k: batch key_pos kv_head d_head, mask?: batch key_pos)
///   -> batch head query_pos key_pos: scaled products, -inf where a key may not be seen.
Run scores(const Attention& attention);
/// batch head query_pos key_pos -> the same: softmax over keys, in float32 at least; 0 where no key may be seen.
/// `sinks` (head): a score that each query of a head has beside those of its keys, and that takes its share; -1: none.
Run pattern(at::ScalarType dtype, WeightId sinks = -1);
/// (pattern, v: batch key_pos kv_head d_head) -> batch query_pos head d_head.
Run mix_values(const Attention& attention);
/// (q, k, v, mask?) -> batch query_pos head d_head: scores, pattern and mixing in one kernel.
Run fused_attention(const Attention& attention);

/// An activation function, with its weights where it has some.
struct ActivationStep {
  Activation kind;
  WeightId alpha_p = -1, alpha_n = -1;  // xielu
};
/// The activation function, elementwise (kSolu: over the last axis), of those without weights.
at::Tensor activated(const at::Tensor& x, Activation activation);
Run activate(const ActivationStep& activation);
/// (x, y) -> activation(x) times y, plus the bias (-1: none).
Run gate(const ActivationStep& activation, WeightId bias = -1);
/// (x, y) -> x times y, plus the bias (-1: none): `gate` once the activation is there.
Run times(WeightId bias = -1);
at::Tensor gated(const StepCall& call, const at::Tensor& x, const at::Tensor& y, const ActivationStep& activation);

}  // namespace glassformer::steps
