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
#include "glassformer/trace/region.h"

namespace glassformer {

struct Edit;
struct Family;
struct Influence;
struct Request;
struct Stem;
class Lineage;
class Window;

/// Positions of a trace; negative ones count from the end. Nothing means all.
using Positions = std::optional<std::vector<int64_t>>;

/// Which values stay in memory after use. Changes the cost, never a result.
enum class KeepValues {
  kBudget,  // What was read or edited, keys and values; the rest while it fits `budget_bytes`.
  kAll,
  kNeeded,  // What was read or edited, keys and values.
};

struct TraceOptions {
  at::Tensor attention_mask = {};  // `batch key_pos`: 0 where a key is padding; undefined: no padding.
  at::Tensor positions = {};       // `batch pos`: the position ids; undefined: 0, 1, 2, …
  KeepValues keep = KeepValues::kBudget;
  int64_t budget_bytes = 0;         // 0: the larger of 64 MB and a quarter of the weights.
  std::function<void()> poll = {};  // Called between steps; may throw to stop. What was computed until then stays.
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
  /// A trace on a text, as the model's tokenizer has it.
  Trace(std::shared_ptr<const Model> model, std::string_view text, const TraceOptions& options = {});
  ~Trace();
  Trace(Trace&&) noexcept;
  Trace& operator=(Trace&&) noexcept;
  Trace(const Trace&) = delete;

  const Model& model() const;
  std::shared_ptr<const Model> model_ptr() const;
  int64_t batch() const;
  int64_t length() const { return length_; }  // Positions.
  at::Tensor tokens();                        // `batch pos`

  /// The value of a node, whole or at some positions (in the order given): the node's shape, with as many positions. A
  /// copy.
  at::Tensor read(std::string_view node, const Positions& positions = std::nullopt);
  /// `batch pos d_vocab`, or `batch d_vocab` at one position.
  at::Tensor logits() { return read("logits"); }
  at::Tensor logits_at(int64_t position);

  /// Puts `value` into a region of a node. It stands whatever changes before it. Returns nothing; `ShapeError`,
  /// `InputError`.
  void set(std::string_view node, const at::Tensor& value, const Region& region = {});
  /// Drops every edit of a node.
  void unset(std::string_view node);
  /// A second trace that shares everything computed, before and after.
  Trace fork() const;
  /// More tokens at the end: `batch pos`, or `pos` for a batch of one.
  void append(const at::Tensor& tokens);
  /// The same trace, read and edited at these positions only.
  Window at(std::vector<int64_t> positions);

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
  struct ActiveEdit {
    std::shared_ptr<Edit> edit;
    std::optional<int64_t> from;  // Once known: the first position that it changes, or `kNothing`.
  };
  static constexpr int64_t kNothing = INT64_MAX;

  Trace() = default;
  void start(const at::Tensor& tokens, const TraceOptions& options);
  void check_tokens(const at::Tensor& tokens) const;
  at::Tensor as_tokens(const at::Tensor& given) const;
  void give(NodeId node, int64_t begin, const at::Tensor& value);
  void add_edit(std::shared_ptr<Edit> edit);
  void forget_effects(NodeId node);
  void update_length_class();
  std::vector<int64_t> shape_of(const Node& node) const;
  std::vector<int64_t> absolute(const Positions& positions) const;
  Lineage& lineage_of(NodeId node, const ActiveEdit* before = nullptr) const;
  ActiveEdit* next_unresolved(NodeId node);
  Request comparison(const ActiveEdit& active) const;
  bool is_comparable(const ActiveEdit& active, const Request& request) const;
  void settle(ActiveEdit& active);
  static void resolve(std::span<Trace* const> traces, NodeId node);
  Request request(NodeId node, const RowSet& rows) const;
  at::Tensor collected(NodeId node, const std::vector<int64_t>& rows) const;
  std::string state_of(NodeId node);

  std::shared_ptr<Family> family_;
  std::shared_ptr<Stem> stem_;
  int64_t length_ = 0;
  std::vector<ActiveEdit> edits_;  // By node, then by id.
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
