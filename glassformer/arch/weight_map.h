#pragma once
// Which tensors of a file are which weights of the universal block.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "glassformer/arch/config.h"

namespace glassformer {

/// A weight of the universal block: its name here and its shape, rows by columns as `linear` takes them
/// (outputs first). "blocks.3.attn.q.weight" is `head*d_head d_model`.
struct WeightSpec {
  std::string name;
  std::vector<int64_t> shape;
};

/// All weights that a model of this config has, in computing order.
std::vector<WeightSpec> weight_specs(const ModelConfig& config);

/// How a tensor in a file is turned into weights.
enum class Layout {
  kRows,           // As we have it: outputs first.
  kColumns,        // Inputs first (GPT-2's Conv1D): used through its transpose.
  kRotaryPairs,    // Rows of each head interleaved as (first half, second half) pairs (llama.cpp's rotary layout).
  kByHead,         // head d_head: the rows of a head on an axis of their own.
  kColumnsByHead,  // head inputs d_head
  kRowsByHead,     // head d_head outputs, of a weight whose inputs are heads.
  kScalar          // One number, without axes.
};

/// One tensor of a file and the weights that lie in it, one below the other. `{}` stands for the layer's number, a
/// second one for the expert's.
struct WeightRule {
  std::string source;
  std::vector<std::string> weights;
  Layout layout = Layout::kRows;
};

/// A weight's place: the tensor, the first of its rows (after `layout`), and how many tensors' worth of rows it has.
struct WeightSource {
  std::string tensor;
  Layout layout = Layout::kRows;
  int64_t first_row = 0;
  int64_t tensor_rows = 0;  // Of the whole tensor.
};

/// Where `weight` lies according to `rules`: by the first one whose tensor `exists`, else by the first of all; an empty
/// tensor name where no rule has it.
WeightSource find_source(const std::vector<WeightRule>& rules, const std::vector<WeightSpec>& specs,
                         const WeightSpec& weight, const std::function<bool(const std::string&)>& exists = {});

/// The shape of the tensor that `weight` is found in, with heads of `d_head`.
std::vector<int64_t> stored_shape(const WeightSource& source, const WeightSpec& weight, int64_t d_head);

}  // namespace glassformer
