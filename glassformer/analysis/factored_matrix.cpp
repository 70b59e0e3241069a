#include "glassformer/analysis/factored_matrix.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linalg_eig.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <mutex>

#include "glassformer/base/errors.h"
#include "glassformer/graph/changes.h"
#include "glassformer/graph/node.h"

namespace glassformer {
namespace {

using at::indexing::TensorIndex;

// torch decomposes nothing in 16 bits.
at::Tensor widened(const at::Tensor& tensor) {
  const bool narrow = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
  return narrow ? tensor.to(at::kFloat) : tensor;
}

std::vector<int64_t> leading_shape(const at::Tensor& a, const at::Tensor& b) {
  const int64_t n = std::max(a.dim(), b.dim()) - 2;
  std::vector<int64_t> shape;
  for (int64_t axis = n; axis > 0; --axis) {  // Counted from the last leading axis.
    const int64_t of_a = axis > a.dim() - 2 ? 1 : a.size(-2 - axis);
    const int64_t of_b = axis > b.dim() - 2 ? 1 : b.size(-2 - axis);
    if (of_a != of_b && of_a != 1 && of_b != 1)
      throw ShapeError(str("factored matrix: shape mismatch: the leading axes of A ", shape_text(a.sizes()), " and B ",
                           shape_text(b.sizes()), " don't broadcast"));
    shape.push_back(of_a == 1 ? of_b : of_a);
  }
  return shape;
}

at::Tensor with_leading(const at::Tensor& factor, std::vector<int64_t> shape) {
  shape.push_back(factor.size(-2));
  shape.push_back(factor.size(-1));
  return factor.expand(shape);
}

void check_meet(const char* where, at::IntArrayRef left, at::IntArrayRef right) {
  if (left.back() != right[right.size() == 1 ? 0 : right.size() - 2])
    throw ShapeError(str(where, ": the inner axes of ", shape_text(left), " and ", shape_text(right), " differ"));
}

// The product of matrices with leading axes, which must broadcast.
at::Tensor product_of(const at::Tensor& a, const at::Tensor& b) {
  leading_shape(a, b);
  return at::matmul(a, b);
}

void check_axes(const char* what, const at::Tensor& tensor, int64_t least, int64_t most) {
  if (tensor.dim() < least || tensor.dim() > most)
    throw ShapeError(
        str("factored matrix: ", what, " has shape ", shape_text(tensor.sizes()), "; expected ",
            least == most ? str(least, least == 1 ? " axis" : " axes") : str("at least ", least, " axes")));
}

constexpr int64_t kAnyNumber = INT64_MAX;

// factor = Q rest, where Q has orthogonal columns; a factor that is not taller than wide is a rest itself.
struct Reduced {
  at::Tensor q, rest;
  at::Tensor restored(const at::Tensor& tensor) const { return q.defined() ? at::matmul(q, tensor) : tensor; }
};

Reduced reduced(const at::Tensor& factor) {
  Reduced result{{}, widened(factor)};
  if (factor.size(-2) > factor.size(-1)) std::tie(result.q, result.rest) = at::linalg_qr(result.rest);
  return result;
}

at::Tensor frobenius(const at::Tensor& matrix) { return matrix.norm(2, at::IntArrayRef{-2, -1}); }

}  // namespace

struct FactoredMatrix::Memory {
  std::mutex mutex;
  SingularValues values;
  int64_t a_version = 0, b_version = 0;

  bool serves(const at::Tensor& a, const at::Tensor& b) const {
    const bool graph = at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
    return values.S.defined() && a_version == changes_of(a) && b_version == changes_of(b) &&
           (!graph || values.S.requires_grad()) && values.S.is_inference() == c10::InferenceMode::is_enabled();
  }
};

FactoredMatrix::FactoredMatrix(const at::Tensor& a, const at::Tensor& b) : memory_(std::make_shared<Memory>()) {
  check_axes("A", a, 2, kAnyNumber);
  check_axes("B", b, 2, kAnyNumber);
  check_meet("factored matrix", a.sizes(), b.sizes());
  std::vector<int64_t> leading = leading_shape(a, b);
  a_ = with_leading(a, leading);
  b_ = with_leading(b, std::move(leading));
}

std::vector<int64_t> FactoredMatrix::shape() const {
  std::vector<int64_t> shape = a_.sizes().vec();
  shape.back() = right();
  return shape;
}

at::Tensor FactoredMatrix::product() const { return at::matmul(a_, b_); }

at::Tensor FactoredMatrix::reverse_product() const {
  if (left() != right())
    throw ShapeError(str("factored matrix: BA of shape ", shape_text(shape()), "; it needs as many rows as columns"));
  return at::matmul(b_, a_);
}

FactoredMatrix FactoredMatrix::times(const at::Tensor& matrix) const {
  check_axes("a matrix to its right", matrix, 2, kAnyNumber);
  check_meet("factored matrix times a matrix", shape(), matrix.sizes());
  return right() > middle() ? FactoredMatrix(a_, product_of(b_, matrix)) : FactoredMatrix(product(), matrix);
}

FactoredMatrix FactoredMatrix::after(const at::Tensor& matrix) const {
  check_axes("a matrix to its left", matrix, 2, kAnyNumber);
  check_meet("a matrix times a factored matrix", matrix.sizes(), shape());
  return left() > middle() ? FactoredMatrix(product_of(matrix, a_), b_) : FactoredMatrix(matrix, product());
}

FactoredMatrix FactoredMatrix::times(const FactoredMatrix& other) const { return times(other.a_).times(other.b_); }

at::Tensor FactoredMatrix::times_vector(const at::Tensor& column) const {
  check_axes("a vector to its right", column, 1, 1);
  check_meet("factored matrix times a vector", shape(), column.sizes());
  return at::matmul(a_, at::matmul(b_, column.unsqueeze(-1))).squeeze(-1);
}

at::Tensor FactoredMatrix::after_vector(const at::Tensor& row) const {
  check_axes("a vector to its left", row, 1, 1);
  check_meet("a vector times a factored matrix", row.sizes(), shape());
  return at::matmul(at::matmul(row.unsqueeze(0), a_), b_).squeeze(-2);
}

FactoredMatrix FactoredMatrix::scaled(double number) const { return {a_ * number, b_}; }

FactoredMatrix FactoredMatrix::scaled(const at::Tensor& number) const {
  if (number.numel() != 1)
    throw ShapeError(str("factored matrix times a tensor of shape ", shape_text(number.sizes()),
                         "; expected one number (for a product of matrices, multiply as matrices)"));
  return {a_ * number, b_};
}

FactoredMatrix FactoredMatrix::transposed() const { return {b_.mT(), a_.mT()}; }

SingularValues FactoredMatrix::svd() const {
  const std::lock_guard lock(memory_->mutex);
  if (!memory_->serves(a_, b_)) {
    const Reduced of_a = reduced(a_), of_b = reduced(b_.mT());
    const auto [u, s, vh] = at::linalg_svd(at::matmul(of_a.rest, of_b.rest.mT()), false);
    memory_->values = {of_a.restored(u), s, of_b.restored(vh.mT())};
    memory_->a_version = changes_of(a_);
    memory_->b_version = changes_of(b_);
  }
  return memory_->values;
}

at::Tensor FactoredMatrix::eigenvalues() const { return std::get<0>(at::linalg_eig(widened(reverse_product()))); }

at::Tensor FactoredMatrix::norm() const { return frobenius(at::matmul(reduced(a_).rest, reduced(b_.mT()).rest.mT())); }

FactoredMatrix FactoredMatrix::made_even() const {
  const SingularValues values = svd();
  const at::Tensor root = values.S.sqrt();
  return {values.U * root.unsqueeze(-2), root.unsqueeze(-1) * values.V.mT()};
}

at::Tensor FactoredMatrix::collapsed_left() const {
  const SingularValues values = svd();
  return values.S.unsqueeze(-1) * values.V.mT();
}

at::Tensor FactoredMatrix::collapsed_right() const {
  const SingularValues values = svd();
  return values.U * values.S.unsqueeze(-2);
}

at::Tensor FactoredMatrix::corner(int64_t count) const {
  at::Tensor a = a_.slice(-2, 0, count), b = b_.slice(-1, 0, count);
  for (int64_t axis = 0; axis < ndim() - 2; ++axis) {
    a = a.slice(axis, 0, count);
    b = b.slice(axis, 0, count);
  }
  return at::matmul(a, b);
}

FactoredMatrix FactoredMatrix::unsqueezed(int64_t axis) const {
  const int64_t place = axis < 0 ? axis + ndim() + 1 : axis;
  if (place < 0 || place > ndim() - 2)
    throw ShapeError(str("factored matrix: unsqueeze at axis ", axis, " of ", shape_text(shape()),
                         "; expected a place among the leading axes, 0 to ", ndim() - 2));
  return {a_.unsqueeze(place), b_.unsqueeze(place)};
}

namespace {

// How many axes an entry takes up; an ellipsis takes what the others leave.
int64_t axes_of(const TensorIndex& entry) {
  if (entry.is_none() || entry.is_boolean() || entry.is_ellipsis()) return 0;
  if (!entry.is_tensor()) return 1;
  const at::ScalarType type = entry.tensor().scalar_type();
  return type == at::kBool || type == at::kByte ? entry.tensor().dim() : 1;
}

// The rows or columns that an entry names, as an entry that keeps the axis.
TensorIndex keeping_axis(const TensorIndex& entry, int64_t size) {
  if (entry.is_tensor() && entry.tensor().dim() != 1)
    throw ShapeError(str("factored matrix: rows or columns by an index of shape ", shape_text(entry.tensor().sizes()),
                         "; expected a slice, an integer or a list"));
  if (!entry.is_integer()) return entry;
  const int64_t given = entry.integer().expect_int(), place = given < 0 ? given + size : given;
  TORCH_CHECK_INDEX(place >= 0 && place < size, "factored matrix: index ", given, " is out of range of ", size);
  return at::indexing::Slice(place, place + 1);
}

}  // namespace

FactoredMatrix FactoredMatrix::index(at::ArrayRef<TensorIndex> entries) const {
  const auto is_ellipsis = [](const TensorIndex& entry) { return entry.is_ellipsis(); };
  int64_t missing = ndim();
  for (const TensorIndex& entry : entries) missing -= axes_of(entry);
  if (missing < 0)
    throw ShapeError(
        str("factored matrix: ", ndim() - missing, " axes indexed: too long an index for shape ", shape_text(shape())));
  TORCH_CHECK_INDEX(std::ranges::count_if(entries, is_ellipsis) <= 1, "factored matrix: more than one ellipsis");
  std::vector<TensorIndex> whole;
  for (const TensorIndex& entry : entries) {
    if (entry.is_ellipsis())
      whole.insert(whole.end(), missing, at::indexing::Slice());
    else
      whole.push_back(entry);
  }
  std::vector<TensorIndex> leading, matrix;
  int64_t taken = 0;
  for (const TensorIndex& entry : whole) {
    const bool is_leading = matrix.empty() && (axes_of(entry) == 0 || taken < ndim() - 2);
    taken += axes_of(entry);
    if (is_leading ? taken > ndim() - 2 && axes_of(entry) > 0 : axes_of(entry) != 1)
      throw ShapeError(str("factored matrix of shape ", shape_text(shape()),
                           ": masks of several axes and new axes must stay among the leading ones"));
    (is_leading ? leading : matrix).push_back(entry);
  }
  at::Tensor a = leading.empty() ? a_ : a_.index(leading), b = leading.empty() ? b_ : b_.index(leading);
  using at::indexing::Ellipsis, at::indexing::Slice;
  if (!matrix.empty()) a = a.index({Ellipsis, keeping_axis(matrix[0], left()), Slice()});
  if (matrix.size() > 1) b = b.index({Ellipsis, keeping_axis(matrix[1], right())});
  return {a, b};
}

namespace {

// Norms of all products of a `… k d` with a `… d k`: leading axes of the one, then of the other. Each matrix of the
// left meets all of the right in one product; pair by pair, both sides would be copied as often as there are pairs.
at::Tensor norms_of_pairs(const at::Tensor& left, const at::Tensor& right) {
  const int64_t rows = left.size(-2), columns = right.size(-1), inner = right.size(-2);
  const at::Tensor side_by_side = right.reshape({-1, inner, columns}).transpose(0, 1).reshape({inner, -1});
  std::vector<int64_t> shape = left.sizes().slice(0, left.dim() - 2).vec();
  const at::IntArrayRef further = right.sizes().slice(0, right.dim() - 2);
  shape.insert(shape.end(), further.begin(), further.end());
  std::vector<at::Tensor> norms;
  for (const at::Tensor& one : left.reshape({-1, rows, inner}).unbind())
    norms.push_back(at::matmul(one, side_by_side).view({rows, -1, columns}).norm(2, at::IntArrayRef{0, 2}));
  return at::stack(norms).view(shape);
}

at::Tensor on_vocabulary(const at::Tensor& vectors, const at::Tensor& unembed, int64_t count) {
  if (count < 1 || count > vectors.size(0))
    throw InputError(str("singular vectors: ", count, " asked for; there are 1 to ", vectors.size(0)));
  check_axes("the unembedding", unembed, 2, 2);
  check_meet("singular vectors times the unembedding", vectors.sizes(), unembed.sizes());
  const at::ScalarType type = c10::promoteTypes(vectors.scalar_type(), unembed.scalar_type());
  return at::matmul(vectors.slice(0, 0, count).to(type), unembed.to(type)).mT().unsqueeze(1);
}

}  // namespace

at::Tensor composition_scores(const FactoredMatrix& left, const FactoredMatrix& right, bool broadcast_axes) {
  if (left.right() != right.left())
    throw ShapeError(str("composition scores: left of shape ", shape_text(left.shape()), " and right of shape ",
                         shape_text(right.shape()), " don't meet in the middle"));
  // Norms don't see the orthogonal factors at the outer ends.
  const at::Tensor of_left = at::matmul(reduced(left.a()).rest, widened(left.b()));
  const at::Tensor of_right = at::matmul(widened(right.a()), reduced(right.b().mT()).rest.mT());
  at::Tensor left_norms = frobenius(of_left);
  if (!broadcast_axes) return frobenius(product_of(of_left, of_right)) / frobenius(of_right) / left_norms;
  for (int64_t axis = 0; axis < right.ndim() - 2; ++axis) left_norms = left_norms.unsqueeze(-1);
  return norms_of_pairs(of_left, of_right) / frobenius(of_right) / left_norms;
}

at::Tensor singular_vectors(const FactoredMatrix& matrix, const at::Tensor& unembed, int64_t count) {
  check_axes("a matrix for singular vectors", matrix.a(), 2, 2);
  return on_vocabulary(matrix.svd().V.mT(), unembed, count);
}

at::Tensor singular_vectors(const at::Tensor& matrix, const at::Tensor& unembed, int64_t count,
                            const std::optional<at::Tensor>& column_scale) {
  check_axes("a matrix for singular vectors", matrix, 2, 2);
  if (column_scale && (column_scale->dim() != 1 || column_scale->size(0) != matrix.size(1)))
    throw ShapeError(str("singular vectors: a scale of shape ", shape_text(column_scale->sizes()),
                         " for the columns of ", shape_text(matrix.sizes())));
  const at::Tensor scaled = widened(column_scale ? matrix * *column_scale : matrix);
  const bool beyond_rank = count > std::min(matrix.size(0), matrix.size(1));  // Then what is orthogonal to the rest.
  return on_vocabulary(std::get<2>(at::linalg_svd(scaled, beyond_rank)), unembed, count);
}

}  // namespace glassformer
