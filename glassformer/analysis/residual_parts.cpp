#include "glassformer/analysis/residual_parts.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/graph/node.h"

namespace glassformer {
namespace {

using MaybeNorm = std::optional<FrozenNorm>;
using MaybeTensor = std::optional<at::Tensor>;

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType dtype = at::promoteTypes(a.scalar_type(), b.scalar_type());
  return at::matmul(a.to(dtype), b.to(dtype));
}

void check_axes(const char* what, const at::Tensor& tensor, int64_t least) {
  if (tensor.dim() < least)
    throw ShapeError(str(what, " has shape ", shape_text(tensor.sizes()), "; expected at least ", least,
                         least == 1 ? " axis" : " axes"));
}

void check_size(const char* what, int64_t found, const char* of, int64_t expected) {
  if (found != expected) throw ShapeError(str(what, " is ", found, ", but ", of, " has ", expected));
}

// A tensor that broadcasts against the stack's batch and positions (which it may repeat, if `widens`), and not against
// its parts.
at::Tensor beside_parts(const char* what, const at::Tensor& stack, at::Tensor tensor, bool widens = true) {
  while (tensor.dim() > stack.dim() - 1 && tensor.size(0) == 1) tensor = tensor.squeeze(0);
  bool fits = tensor.dim() <= stack.dim() - 1;
  for (int64_t axis = 2; fits && axis <= tensor.dim(); ++axis) {
    const int64_t here = tensor.size(-axis), there = stack.size(-axis);
    fits = here == there || here == 1 || (there == 1 && widens);
  }
  if (!fits)
    throw ShapeError(str(what, " of shape ", shape_text(tensor.sizes()), " can't go with a stack of shape ",
                         shape_text(stack.sizes()), "; give both the same slices of batch and positions"));
  return tensor;
}

at::Tensor centered(const at::Tensor& vectors) { return vectors - vectors.mean(-1, true); }

// Vectors `… d_model` through the norm.
at::Tensor through(const at::Tensor& vectors, const FrozenNorm& norm) {
  const at::Tensor scaled = (norm.center ? centered(vectors) : vectors) / norm.scale;
  return norm.weight.defined() ? scaled * norm.weight : scaled;
}

// The vectors d `d_model out` for which x·d / scale is the norm of x, times `columns`.
at::Tensor columns_through(const at::Tensor& columns, const MaybeNorm& norm) {
  if (!norm) return columns;
  const at::Tensor weighted = norm->weight.defined() ? columns * norm->weight.unsqueeze(-1) : columns;
  return norm->center ? weighted - weighted.mean(0, true) : weighted;
}

// Rows `neuron d_model` for which activation / scale times the row is the norm of activation times row.
at::Tensor rows_through(const at::Tensor& rows, const MaybeNorm& norm) {
  if (!norm) return rows;
  const at::Tensor moved = norm->center ? centered(rows) : rows;
  return norm->weight.defined() ? moved * norm->weight : moved;
}

void check_projection(const at::Tensor& projection, int64_t d_model) {
  if (projection.dim() != 1 && projection.dim() != 2)
    throw ShapeError(
        str("a projection of shape ", shape_text(projection.sizes()), "; expected d_model, or d_model out"));
  check_size("the projection's first axis", projection.size(0), "the residual stream", d_model);
}

void check_neurons(const at::Tensor& activations, const at::Tensor& W_out) {
  check_axes("activations of neurons", activations, 1);
  if (W_out.dim() != 2)
    throw ShapeError(str("W_out has shape ", shape_text(W_out.sizes()), "; expected neuron d_model"));
  check_size("W_out's number of neurons", W_out.size(0), "the activations' last axis", activations.size(-1));
}

// `… neuron` as `neuron … 1`, and rows `neuron d` as `neuron 1 … d`: what multiplies to components.
at::Tensor leading(const at::Tensor& activations) { return activations.movedim(-1, 0).unsqueeze(-1); }

at::Tensor spread(const at::Tensor& rows, int64_t axes) {
  std::vector<int64_t> shape(axes, 1);
  shape.front() = rows.size(0);
  shape.back() = rows.size(1);
  return rows.reshape(shape);
}

}  // namespace

at::Tensor normed(const at::Tensor& stack, const FrozenNorm& norm) {
  check_axes("a stack of parts", stack, 2);
  return through(stack, {beside_parts("a norm's scale", stack, norm.scale), norm.center, norm.weight});
}

at::Tensor head_results(const at::Tensor& z, const at::Tensor& W_O) {
  check_axes("z", z, 2);
  if (W_O.dim() != 3)
    throw ShapeError(str("W_O has shape ", shape_text(W_O.sizes()), "; expected head d_head d_model"));
  check_size("z's number of heads", z.size(-2), "W_O", W_O.size(0));
  check_size("z's last axis", z.size(-1), "a head of W_O", W_O.size(1));
  const at::ScalarType dtype = at::promoteTypes(z.scalar_type(), W_O.scalar_type());
  const at::Tensor by_head = z.to(dtype).reshape({-1, z.size(-2), z.size(-1)}).transpose(0, 1);
  std::vector<int64_t> shape = z.sizes().vec();
  shape.back() = W_O.size(2);
  return at::bmm(by_head, W_O.to(dtype)).transpose(0, 1).view(shape);
}

at::Tensor neuron_results(const at::Tensor& activations, const at::Tensor& W_out, const MaybeTensor& projection,
                          const MaybeNorm& after) {
  const bool one = W_out.dim() == 1;
  const at::Tensor rows = one ? W_out.unsqueeze(0) : W_out;
  const at::Tensor acts = one ? activations.unsqueeze(-1) : activations;
  check_neurons(acts, rows);
  const at::Tensor scaled = after ? acts / after->scale : acts;
  at::Tensor written = rows_through(rows, after);
  if (projection) {
    check_projection(*projection, rows.size(1));
    written = product(written, projection->dim() == 1 ? projection->unsqueeze(-1) : *projection);
  }
  at::Tensor results = scaled.unsqueeze(-1) * written;
  if (one) results = results.squeeze(-2);
  return projection && projection->dim() == 1 ? results.squeeze(-1) : results;
}

at::Tensor logit_attributions(const at::Tensor& stack, const at::Tensor& directions, const MaybeTensor& versus,
                              const MaybeNorm& norm) {
  check_axes("a stack of parts", stack, 2);
  check_axes("directions", directions, 1);
  check_size("the directions' last axis", directions.size(-1), "the stack", stack.size(-1));
  at::Tensor wanted = beside_parts("directions", stack, versus ? directions - *versus : directions);
  if (norm && norm->weight.defined()) wanted = wanted * norm->weight;
  if (norm && norm->center) wanted = centered(wanted);
  at::Tensor products;
  if (wanted.dim() == 1) {
    products = product(stack, wanted);
  } else {
    // For each place, all parts times that place's direction.
    const auto places =
        at::infer_size(stack.sizes().slice(1, stack.dim() - 2), wanted.sizes().slice(0, wanted.dim() - 1));
    std::vector<int64_t> shape = {stack.size(0)}, of_directions = places;
    shape.insert(shape.end(), places.begin(), places.end());
    of_directions.push_back(wanted.size(-1));
    std::vector<int64_t> of_stack = shape;
    of_stack.push_back(stack.size(-1));
    const at::Tensor by_place = stack.expand(of_stack).flatten(1, -2).transpose(0, 1);
    const at::Tensor columns = wanted.expand(of_directions).flatten(0, -2).unsqueeze(-1);
    products = product(by_place, columns).squeeze(-1).transpose(0, 1).reshape(shape);
  }
  return norm ? products / beside_parts("a norm's scale", stack, norm->scale).squeeze(-1) : products;
}

// What is asked of every part: a norm, and the columns `d_model out` of a projection with the norm in them.
struct ResidualParts::Asked {
  MaybeNorm norm;
  at::Tensor columns;
  int64_t axes;  // Of the result.

  at::Tensor scaled(const at::Tensor& tensor) const { return norm ? tensor / norm->scale : tensor; }
  at::Tensor asked_rows(const at::Tensor& rows) const {
    return spread(columns.defined() ? product(rows, columns) : rows_through(rows, norm), axes);
  }
  at::Tensor of(const Block& block) const {
    if (block.rows.defined()) return leading(scaled(block.activations)) * asked_rows(block.rows);
    if (columns.defined()) return scaled(product(block.stack, columns));
    return norm ? through(block.stack, *norm) : block.stack;
  }
  void write(const Block& block, at::Tensor& place) const {
    if (block.rows.defined()) {
      at::mul_out(place, leading(scaled(block.activations)), asked_rows(block.rows));
      return;
    }
    if (norm && norm->center) {
      at::sub_out(place, block.stack, block.stack.mean(-1, true));
    } else {
      place.copy_(block.stack);
    }
    if (norm) place.div_(norm->scale);
    if (norm && norm->weight.defined()) place.mul_(norm->weight);
  }
};

void ResidualParts::add_block(Block block) {
  std::vector<int64_t> shape;
  if (block.stack.defined()) {
    shape = block.stack.sizes().slice(1).vec();
  } else {
    shape = block.activations.sizes().vec();
    shape.back() = block.rows.size(1);
  }
  if (blocks_.empty()) shape_ = shape;
  if (shape != shape_)
    throw ShapeError(str("parts of the residual stream of shape ", shape_text(shape), " beside ones of shape ",
                         shape_text(shape_), "; give all of them the same slices"));
  blocks_.push_back(std::move(block));
}

void ResidualParts::add(const at::Tensor& stack) {
  check_axes("a stack of parts", stack, 2);
  add_block({stack, {}, {}});
}

void ResidualParts::add_heads(const at::Tensor& results, const MaybeNorm& after) {
  check_axes("heads' results", results, 2);
  const at::Tensor stack = results.movedim(-2, 0);
  add(after ? normed(stack, *after) : stack);
}

void ResidualParts::add_neurons(const at::Tensor& activations, const at::Tensor& W_out, const MaybeNorm& after) {
  check_neurons(activations, W_out);
  add_block({{}, after ? activations / after->scale : activations, rows_through(W_out, after)});
}

void ResidualParts::add_bias(const std::vector<std::pair<at::Tensor, MaybeNorm>>& biases) {
  if (blocks_.empty()) throw InputError("a bias as the first part; add one with batch and positions before it");
  const at::Tensor& first = blocks_[0].stack.defined() ? blocks_[0].stack : blocks_[0].rows;
  at::Tensor total = at::zeros(shape_.back(), first.options());
  for (const auto& [bias, after] : biases) {
    if (bias.dim() != 1) throw ShapeError(str("a bias has shape ", shape_text(bias.sizes()), "; expected d_model"));
    check_size("the bias' size", bias.size(0), "the residual stream", shape_.back());
    total = total + (after ? through(bias, *after) : bias);
  }
  add(total.expand(shape_).unsqueeze(0));
}

void ResidualParts::add_rest(const at::Tensor& whole) {
  add_block({whole.unsqueeze(0), {}, {}});
  blocks_.back().rest = true;
}

at::Tensor ResidualParts::stack(const MaybeNorm& norm, const MaybeTensor& projection) const {
  if (blocks_.empty()) throw InputError("a stack of no parts; expected at least one");
  std::vector<int64_t> shape = shape_;
  shape.insert(shape.begin(), 0);
  for (const Block& block : blocks_) shape[0] += block.size();
  Asked asked{norm, {}, static_cast<int64_t>(shape.size())};
  if (norm) asked.norm->scale = beside_parts("a norm's scale", at::empty({1}).expand(shape), norm->scale, false);
  if (projection) {
    check_projection(*projection, shape_.back());
    asked.columns = columns_through(projection->dim() == 1 ? projection->unsqueeze(-1) : *projection, norm);
    const at::Tensor result = projected(asked);
    return projection->dim() == 1 ? result.squeeze(-1) : result;
  }
  const std::vector<Block> blocks = with_rests();
  const auto learned = [](const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); };
  const bool graph =
      at::GradMode::is_enabled() && ((norm && (learned(norm->scale) || learned(norm->weight))) ||
                                     std::any_of(blocks.begin(), blocks.end(), [&](const Block& block) {
                                       return learned(block.stack) || learned(block.activations) || learned(block.rows);
                                     }));
  if (!graph) return written(asked, blocks, shape);
  std::vector<at::Tensor> pieces;
  for (const Block& block : with_neurons_joined(blocks)) pieces.push_back(asked.of(block));
  return pieces.size() == 1 && (norm || blocks[0].rows.defined()) ? pieces[0] : at::cat(pieces);
}

at::Tensor ResidualParts::projected(const Asked& asked) const {
  std::vector<at::Tensor> pieces;
  for (const Block& block : blocks_) {
    at::Tensor piece = asked.of(block);
    if (block.rest)
      for (const at::Tensor& before : pieces) piece = piece - before.sum(0, true);
    pieces.push_back(std::move(piece));
  }
  return pieces.size() == 1 ? pieces[0] : at::cat(pieces);
}

// The blocks, with what is left of a whole in its place.
std::vector<ResidualParts::Block> ResidualParts::with_rests() const {
  std::vector<Block> blocks;
  for (Block block : blocks_) {
    if (block.rest)
      for (const Block& before : blocks)
        block.stack = block.stack - (before.stack.defined() ? before.stack.sum(0, true)
                                                            : product(before.activations, before.rows).unsqueeze(0));
    blocks.push_back(std::move(block));
  }
  return blocks;
}

// Without a graph each part is written where it will lie.
at::Tensor ResidualParts::written(const Asked& asked, const std::vector<Block>& blocks,
                                  const std::vector<int64_t>& shape) {
  const at::Tensor& first = blocks[0].stack.defined() ? blocks[0].stack : blocks[0].rows;
  at::ScalarType dtype = first.scalar_type();
  const auto promote = [&](const at::Tensor& tensor) {
    if (tensor.defined()) dtype = at::promoteTypes(dtype, tensor.scalar_type());
  };
  if (asked.norm) promote(asked.norm->scale), promote(asked.norm->weight);
  for (const Block& block : blocks) promote(block.stack), promote(block.activations), promote(block.rows);
  at::Tensor result = at::empty(shape, first.options().dtype(dtype));
  int64_t start = 0;
  for (const Block& block : blocks) {
    at::Tensor place = result.narrow(0, start, block.size());
    asked.write(block, place);
    start += block.size();
  }
  return result;
}

// Neighbouring blocks of neurons as one, so that a graph has one product.
std::vector<ResidualParts::Block> ResidualParts::with_neurons_joined(const std::vector<Block>& blocks) {
  std::vector<Block> joined;
  for (size_t i = 0; i < blocks.size();) {
    std::vector<at::Tensor> activations, rows;
    for (; i < blocks.size() && blocks[i].rows.defined(); ++i) {
      activations.push_back(blocks[i].activations);
      rows.push_back(blocks[i].rows);
    }
    if (!rows.empty()) joined.push_back({{}, at::cat(activations, -1), at::cat(rows)});
    if (i < blocks.size()) joined.push_back(blocks[i++]);
  }
  return joined;
}

}  // namespace glassformer
