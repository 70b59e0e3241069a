#pragma once
// Prompts of different lengths side by side: a trace each, nothing padded inside; only what is read as one tensor is.

#include <vector>

#include "glassformer/trace/trace.h"

namespace glassformer {

class Batch {
 public:
  /// Traces of one model with one sequence each.
  explicit Batch(std::vector<Trace> traces);
  /// One trace for each text.
  Batch(const std::shared_ptr<const Model>& model, const std::vector<std::string>& texts,
        const TraceOptions& options = {});

  Batch(Batch&&) = default;
  Batch& operator=(Batch&&) = default;
  Batch(const Batch&) = delete;

  const Model& model() const { return traces_.front().model(); }
  std::vector<Trace>& traces() { return traces_; }
  int64_t size() const { return static_cast<int64_t>(traces_.size()); }
  /// Positions of the longest.
  int64_t length() const;
  /// `batch pos`, bool, on the model's device: true at real tokens; padding stands at the left.
  at::Tensor mask() const;

  /// A node of all traces as one tensor, its positions filled up at the left with zeros (scores: -inf).
  at::Tensor read(std::string_view node);
  /// One position of each trace, counted in its own tokens (-1: its last): the node's shape with a single position.
  at::Tensor read_at(std::string_view node, int64_t position);
  /// `batch d_vocab`: the logits at one position of each trace.
  at::Tensor logits_at(int64_t position) { return read_at("logits", position).squeeze(1); }
  /// Puts `value` into a region of the padded node; what falls on padding is dropped.
  void set(std::string_view node, const at::Tensor& value, const Region& region = {});
  /// Puts a function onto a node of all traces. It is called once for all of them, with the padded tensor, whose
  /// padding is dropped from what it returns. A trace of the batch that is read alone while the hook is still to be
  /// called raises `UnavailableError`.
  void hook(std::string_view node, const HookFunction& function, const HookOptions& options = {});
  /// Calls every hook on nodes up to `until`, needed or not, and computes `until`.
  void run(std::string_view until = "logits");
  void unset(std::string_view node);
  Batch fork() const;
  /// A batch of traces of an extended model: see `Trace::fork`.
  Batch fork(const std::shared_ptr<const Model>& extended) const;

 private:
  std::vector<Trace*> pointers();

  std::vector<Trace> traces_;
};

}  // namespace glassformer
