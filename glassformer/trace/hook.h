#pragma once
// Hooks: functions on nodes. A hook is called with a copy of what was computed, and what it gives back stands there.

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "glassformer/graph/node.h"

namespace glassformer {

struct TraceState;

/// Where a hook is called.
class HookCall {
 public:
  HookCall(const Node& node, int64_t segment, int64_t begin, int64_t end, TraceState* trace)
      : node_(node), segment_(segment), begin_(begin), end_(end), trace_(trace) {}

  const Node& node() const { return node_; }
  /// 0 for the prompt, then one more for each `append`.
  int64_t segment() const { return segment_; }
  /// The positions of that segment: [begin, end). In a batch of prompts of different lengths those of the longest.
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  /// The value of a node that comes before this one, at the same positions. `OrderError` for a later one;
  /// `UnavailableError` in a batch, and where it has no value there.
  at::Tensor read(std::string_view node) const;

 private:
  const Node& node_;
  int64_t segment_, begin_, end_;
  TraceState* trace_;
};

/// Gets a private copy of a node's value at the positions of a segment. It returns what is to stand there (the same
/// shape, or one that broadcasts to it), or an undefined tensor: then the copy stands there, changed in place or not.
using HookFunction = std::function<at::Tensor(const at::Tensor& value, const HookCall& call)>;

/// Gets a copy of the gradient of a node's whole value and returns what is to flow on in its place (the same shape), or
/// an undefined tensor: then the copy does, changed in place or not.
using GradientFunction = std::function<at::Tensor(const at::Tensor& gradient, const HookCall& call)>;

struct HookOptions {
  std::vector<int64_t> segments = {};  // Called on these only; empty: on all, also on those appended later.
  int64_t first_segment = 0;           // Not called on segments before this one.
};

}  // namespace glassformer
