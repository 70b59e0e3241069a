#pragma once
// A trace: a model's graph on one input, evaluated lazily. Reading a node computes it and just what it needs; setting
// one makes everything after it stale, from the first changed position on.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "glassformer/graph/model.h"
#include "glassformer/trace/hook.h"
#include "glassformer/trace/region.h"

namespace glassformer {

struct TraceState;
class Window;

/// Positions of a trace; negative ones count from the end. Nothing means all.
using Positions = std::optional<std::vector<int64_t>>;

/// Which values stay in memory after use. Changes the cost, never a result.
enum class KeepValues {
  kBudget,  // What was read or edited, keys and values; the rest while it fits `budget_bytes`.
  kAll,
  kNeeded,  // What was read or edited, keys and values.
};

/// Keys and values of one layer, `batch pos kv_head d_head`: those of `Graph::keys_and_values`.
struct LayerPast {
  at::Tensor k, v;
};
/// Of every layer, in order, at the same positions.
using Past = std::vector<LayerPast>;

/// Where there is a past, mask and positions cover it too.
struct TraceOptions {
  // `batch key_pos`: 0 where a key is padding. Or `batch query_pos key_pos`: 1 where the query sees that key, in the
  // place of order and windows; what is appended sees all keys before it that any query saw. Undefined: no padding.
  at::Tensor attention_mask = {};
  at::Tensor positions = {};  // `batch pos`: the position ids; undefined: 0, 1, 2, …
  KeepValues keep = KeepValues::kBudget;
  int64_t budget_bytes = 0;         // 0: the larger of 64 MB and a quarter of the weights.
  std::function<void()> poll = {};  // Called between steps; may throw to stop. What was computed until then stays.
  Past past = {};                   // What comes before the tokens; empty: nothing.
};

/// How many rows (batch times positions) of a node were computed for a trace and its forks.
struct Work {
  std::string node;
  int64_t rows = 0;
};

struct ReadAllOptions {
  bool keep_values = false;  // Edited traces keep keys and values too, which pays where they are appended to.
};

class Trace {
 public:
  /// A trace on tokens, `batch pos` (or `pos`), int64. Raises `InputError`: no tokens, out of range, longer than the
  /// context.
  Trace(std::shared_ptr<const Model> model, const at::Tensor& tokens, const TraceOptions& options = {});
  /// A trace on a text, as the model's tokenizer has it; after a past without special tokens.
  Trace(std::shared_ptr<const Model> model, std::string_view text, const TraceOptions& options = {});
  /// A trace that begins at a node with an axis `pos`, on its value (`batch pos …`; without `batch` for one). What
  /// can't be computed from that is unavailable: `UnavailableError`. Raises `ShapeError`, `InputError`.
  static Trace from_node(std::shared_ptr<const Model> model, std::string_view node, const at::Tensor& value,
                         const TraceOptions& options = {});
  ~Trace();
  Trace(Trace&&) noexcept;
  Trace& operator=(Trace&&) noexcept;
  Trace(const Trace&) = delete;

  const Model& model() const;
  std::shared_ptr<const Model> model_ptr() const;
  int64_t batch() const;
  int64_t length() const;  // Positions, those of a past among them.
  /// The first position that is more than a past: 0 where there is none. Before it there are keys (also rotated ones),
  /// values and inputs only.
  int64_t begin() const;
  const std::string& begin_node() const;  // "hook_tokens", or the node that was given in their place.
  int64_t n_segments() const;             // The prompt and each append.
  at::Tensor tokens();                    // `batch pos`, from `begin()` on.
  /// The keys and values of every layer at all positions, for another trace to begin with.
  Past past();

  /// The value of a node, whole (at all positions where there is one) or at some positions, in the order given: the
  /// node's shape, with as many positions. A copy. `UnavailableError` where there is none.
  at::Tensor read(std::string_view node, const Positions& positions = std::nullopt);
  /// `batch pos d_vocab`, or `batch d_vocab` at one position.
  at::Tensor logits() { return read("logits"); }
  at::Tensor logits_at(int64_t position);

  /// Puts `value` into a region of a node. It stands whatever changes before it. Returns nothing; `ShapeError`,
  /// `InputError`.
  void set(std::string_view node, const at::Tensor& value, const Region& region = {});
  /// Puts `change(value)` in the place of the node's present value, as in-place operations do. It belongs to that
  /// value: once another edit has changed what it was made from, reading raises `OrderError` and names both.
  void edit(std::string_view node, const std::function<at::Tensor(const at::Tensor& value)>& change);
  /// Puts a function onto a node. It is called when a read first needs it, once for each segment (the prompt, each
  /// append) and state of what it is given, with a copy of the node's whole value there; never again for the same
  /// input, unless it reads other nodes (`HookCall::read`): then whenever one of these changes. What it returns stands
  /// in the node; `ShapeError` where it can't.
  void hook(std::string_view node, HookFunction function, const HookOptions& options = {});
  /// Puts a function onto a node's gradient: in backward passes through what this trace hands out with a graph, it is
  /// called with the gradient of the node's whole value, and what it returns flows on to what lies before the node. It
  /// is an edit of this trace: `unset` drops it, and no other trace knows of it but later forks.
  void hook_gradient(std::string_view node, GradientFunction function);
  /// Whether what is read carries a graph (while torch's gradient mode is on) although nothing else asks for one. A
  /// weight, a value that was set, or what a hook returns, if it requires grad, does so by itself for what depends on
  /// it.
  void require_grad(bool on = true);
  bool requires_grad() const;
  /// The gradients of `scalar` (one number on the graph of values that this trace handed out) with respect to nodes or
  /// weights, each of its node's or weight's shape. The graph stays. `InputError` where the scalar has no graph or does
  /// not depend on one of them in this trace (with `allow_unused` an undefined tensor).
  std::vector<at::Tensor> grad(const at::Tensor& scalar, const std::vector<std::string>& names,
                               bool allow_unused = false);
  /// Calls every hook on nodes up to `until`, needed or not, in computing order, and computes `until`.
  void run(std::string_view until = "logits");
  /// Drops every edit and hook of a node.
  void unset(std::string_view node);
  /// A second trace that shares everything computed, before and after.
  Trace fork() const;
  /// A trace of a model that was made from this one's with `Model::extended`. Edits and hooks come along; the values of
  /// all nodes that the extension leaves as they are, are there already. What was spliced goes on from the node as it
  /// is here, edits included. What is computed afterwards isn't shared. `InputError` for another model, or one that
  /// lacks a node that is edited here.
  Trace fork(const std::shared_ptr<const Model>& extended) const;
  /// More tokens at the end: `batch pos`, or `pos` for a batch of one; of a trace that begins at another node, that
  /// node's values.
  void append(const at::Tensor& given);
  /// Drops the positions from `length` on, with what edits say of them; forks keep theirs. `InputError` for a length
  /// outside the trace, within a past, or within a prompt that came with a mask or positions.
  void truncate(int64_t length);
  /// The same trace, read and edited at these positions only.
  Window at(const std::vector<int64_t>& positions);

  /// For bindings: a value whose changes in place count as edits, collected by the trace's next operation;
  /// `StaleEditError` from that one where the node had another value by then.
  at::Tensor hand_out(std::string_view node, const Positions& positions = std::nullopt);
  void collect();
  /// Collects, and watches nothing any more.
  void let_go();
  /// For bindings, after an assignment by index into such a value: `numbers` stand in `region` of it. `value` is what
  /// was assigned, if it was a tensor. False where `held` is not watched.
  bool assigned(const at::Tensor& held, const Region& region, const at::Tensor& numbers, const at::Tensor& value);

  /// How a node comes about here: its shape, its step, and which rows of its inputs are computed, edited or stale.
  std::string explain(std::string_view node);
  /// Names of the edited nodes, in computing order.
  std::vector<std::string> edited() const;
  /// What was computed so far, in computing order; nodes without work are left out.
  std::vector<Work> work() const;
  void reset_work();

 private:
  friend std::vector<at::Tensor> read_all(std::span<Trace* const> traces, std::string_view node,
                                          const Positions& positions, const ReadAllOptions& options);
  friend class Batch;
  explicit Trace(std::unique_ptr<TraceState> state);

  std::unique_ptr<TraceState> state_;
};

/// A trace at some positions.
class Window {
 public:
  at::Tensor read(std::string_view node) { return trace_->read(node, positions_); }
  /// `value` has the node's shape with as many positions as the window, or broadcasts to it.
  void set(std::string_view node, const at::Tensor& value);

 private:
  friend class Trace;
  Window(Trace* trace, std::vector<int64_t> positions) : trace_(trace), positions_(std::move(positions)) {}

  Trace* trace_;
  std::vector<int64_t> positions_;
};

/// The value of one node in many traces of one model (forks of a sweep, prompts of different lengths), each as
/// `Trace::read` gives it, computed together: what they share once, and the rest laid end to end.
std::vector<at::Tensor> read_all(std::span<Trace* const> traces, std::string_view node,
                                 const Positions& positions = std::nullopt, const ReadAllOptions& options = {});

/// Values of different lengths as one tensor, filled up at the left (axis 1, and for nodes with keys axis 3 too), and
/// the mask of what is real: `batch pos`, bool.
struct Padded {
  at::Tensor values;
  at::Tensor mask;
};
Padded pad_left(const std::vector<at::Tensor>& values, const Node& node, double fill = 0);

}  // namespace glassformer
