#pragma once
// Nodes: the named activations of a model, each with its shape in words and the step that computes it.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glassformer/graph/rows.h"
#include "glassformer/graph/weights.h"

namespace glassformer {

using NodeId = int32_t;

/// One axis of a node's shape. `size` is 0 where the input decides (batch, pos, query_pos, key_pos).
struct Axis {
  std::string word;
  int64_t size = 0;
};

/// Which rows (positions) of an input a row of the output needs.
enum class Reach {
  kSameRow,  // Row r needs row r.
  kUpToRow,  // Row r needs rows 0 to r; every row where the trace is not causal there.
};

struct StepInput {
  NodeId node = -1;
  Reach reach = Reach::kSameRow;
  bool optional = false;  // The step gets an undefined tensor while nobody gave or edited this node.
};

/// Which keys each query sees, in the place of those before it: `batch query_pos key_pos`, bool, of the queries from
/// `first_row` on; later queries and keys are none of it.
struct QueryMask {
  at::Tensor allowed;
  int64_t first_row = 0;

  int64_t end_row() const { return first_row + allowed.size(1); }
};

/// What a step is run on.
struct StepCall {
  std::span<const at::Tensor> inputs;
  const Weights& weights;
  const RowSet& rows;        // The positions that are computed; a step by row only sees how many there are.
  int64_t n_keys = 0;        // How many keys the inputs up to the last row hold.
  int64_t length_class = 0;  // See `length_class()` in arch/config.h.
  const QueryMask* query_mask = nullptr;  // Null: every query sees the keys before it.
};

/// The mathematics of one node: a pure function of its inputs and weights.
struct Step {
  std::string text;  // For `explain`: "linear(blocks.0.ln1.hook_out, blocks.0.attn.q.weight)".
  std::vector<StepInput> inputs;
  std::vector<WeightId> weights;
  bool by_row = true;  // Inputs and output come as `row …` (batch and pos in one); otherwise with all their axes.
  std::function<at::Tensor(const StepCall&)> run;
};

struct Node {
  NodeId id = -1;
  std::string name;
  std::vector<Axis> axes;
  int row_axis = 1;  // The axis of positions that makes the node's rows.
  Step open;         // From the nodes directly before it.
  Step fast;         // Past `skipped`, when none of these is edited; `run` is empty where there is no such way.
  std::vector<NodeId> skipped;
  bool is_wide = false;    // In float32 at least, whatever the model's dtype.
  bool is_single = false;  // In float32, whatever the model's dtype.
  int64_t choices = 0;  // Of whole numbers, how many there are to choose from; kept for good: no choice is made twice.
  bool attended = false;      // Some step reaches its earlier rows again: worth keeping.
  bool starts_block = false;  // Its whole block can be computed from it.
  bool is_input = false;      // Given, not computed: tokens, positions, attention mask.
  NodeId mixed_by = -1;       // For scores and pattern: the node of mixed values that they weight.
  float absent = 0;           // What stands for keys after the last computed one, in nodes with keys.
  NodeId stands_for = -1;     // Of a spliced node: the one below, whose value it has while nothing between is edited.
  uint64_t origin = 0;        // The same for all copies of this node in graphs made from one another.

  /// Scores or pattern: an edit can make its layer see keys after the query.
  bool is_weighting() const { return mixed_by >= 0; }
  bool has_keys() const { return axes.size() == 4 && axes[3].word == "key_pos"; }
};

/// The number of the axis with this shape word; `InputError` with the words that there are.
int axis_named(const Node& node, std::string_view word);
/// The block that a node stands in: 3 for "blocks.3.attn.hook_z"; nothing for nodes outside the blocks.
std::optional<int64_t> layer_of(const Node& node);
/// "batch pos head d_head".
std::string shape_words(const Node& node);
/// "[1, 5, 576]".
std::string shape_text(at::IntArrayRef shape);

}  // namespace glassformer
