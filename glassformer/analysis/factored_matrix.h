#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace glassformer {

/// A = U diag(S) Vᵀ, with as many singular values as A can have: `… rows k`, `… k`, `… columns k`.
struct SingularValues {
  at::Tensor U, S, V;
};

/// A matrix that is a product of two, kept as its factors: `… left mid` times `… mid right`, usually with a small
/// middle, as the value and output weights of a head are. Leading axes broadcast. Gradients flow through everything.
/// What torch can't decompose in 16 bits is computed in float32.
class FactoredMatrix {
 public:
  /// Throws `ShapeError` where the middles differ or the leading axes don't broadcast.
  FactoredMatrix(const at::Tensor& a, const at::Tensor& b);

  /// The factors with all leading axes: `… left mid` and `… mid right`; they share memory with what was given.
  const at::Tensor& a() const { return a_; }
  const at::Tensor& b() const { return b_; }
  int64_t left() const { return a_.size(-2); }
  int64_t middle() const { return a_.size(-1); }
  int64_t right() const { return b_.size(-1); }
  /// Of the product: `… left right`.
  std::vector<int64_t> shape() const;
  int64_t ndim() const { return a_.dim(); }

  /// The product itself: `… left right`. As large as the factored form is meant to avoid.
  at::Tensor product() const;
  /// The factors' product the other way round: `… mid mid`. Throws `ShapeError` where left and right differ.
  at::Tensor reverse_product() const;
  /// This matrix times a matrix `… right new`, or a matrix `… new left` times this one. Of the two ways to put the
  /// third factor into two, the one with the smaller middle. Throws `ShapeError` where the sizes don't meet.
  FactoredMatrix times(const at::Tensor& matrix) const;
  FactoredMatrix after(const at::Tensor& matrix) const;
  FactoredMatrix times(const FactoredMatrix& other) const;
  /// This matrix times a column `right`, or a row `left` times this one: `… left`, `… right`.
  at::Tensor times_vector(const at::Tensor& column) const;
  at::Tensor after_vector(const at::Tensor& row) const;
  /// Times one number; a tensor must have one element, else throws `ShapeError`.
  FactoredMatrix scaled(double number) const;
  FactoredMatrix scaled(const at::Tensor& number) const;
  FactoredMatrix transposed() const;

  /// From QR decompositions of the factors and the SVD of a matrix no larger than `mid mid`. Computed once, and again
  /// if a factor was changed in place or a graph is wanted that the first lacks.
  SingularValues svd() const;
  /// The eigenvalues of the product, those of `reverse_product()`: `… mid`, complex.
  at::Tensor eigenvalues() const;
  /// The Frobenius norm: `…`.
  at::Tensor norm() const;
  /// The same matrix as U√S times √S Vᵀ.
  FactoredMatrix made_even() const;
  /// What is left of the matrix without its left (right) orthogonal factor: S Vᵀ, `… k right` (US, `… left k`).
  at::Tensor collapsed_left() const;
  at::Tensor collapsed_right() const;
  /// The first `count` indices of every axis, without computing the rest.
  at::Tensor corner(int64_t count) const;

  /// A new leading axis of size 1 before axis `axis`; negative ones count from the end of the result. Throws
  /// `ShapeError` for a place behind the leading axes.
  FactoredMatrix unsqueezed(int64_t axis) const;
  /// Indexes the leading axes as torch does, and then rows and columns, each on its own: an integer there keeps an axis
  /// of size 1, and rows and columns that are both lists make all pairs. Throws `ShapeError` for more indices than axes
  /// or new axes behind the leading ones, and torch's `c10::IndexError` for an index out of range.
  FactoredMatrix index(at::ArrayRef<at::indexing::TensorIndex> entries) const;

 private:
  struct Memory;
  at::Tensor a_, b_;
  std::shared_ptr<Memory> memory_;  // Of the last svd; shared by copies, which have the same factors.
};

/// How much of what `left` writes `right` reads (Elhage et al. 2021): ‖left right‖ / (‖left‖ ‖right‖), Frobenius norms.
/// With `broadcast_axes` for all pairs: leading axes of left, then those of right. Without, leading axes broadcast.
/// Throws `ShapeError` where left's right and right's left differ.
at::Tensor composition_scores(const FactoredMatrix& left, const FactoredMatrix& right, bool broadcast_axes = true);

/// The first `count` right singular vectors of a matrix `rows d_model`, read through the unembedding `d_model d_vocab`:
/// `d_vocab 1 count`. The matrix' columns may be scaled first, by a norm's weight `d_model`. Throws `ShapeError` for
/// leading axes, and `InputError` for more vectors than there are.
at::Tensor singular_vectors(const FactoredMatrix& matrix, const at::Tensor& unembed, int64_t count);
at::Tensor singular_vectors(const at::Tensor& matrix, const at::Tensor& unembed, int64_t count,
                            const std::optional<at::Tensor>& column_scale = {});

}  // namespace glassformer
