#pragma once
// Internal to trace/ and the bindings: values in users' hands, whose changes count as edits.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "glassformer/graph/node.h"

namespace glassformer {

struct LiveValue {
  NodeId node = -1;
  std::vector<int64_t> rows;  // The positions that it shows.
  at::Tensor held;            // What the user has.
  at::Tensor baseline = {};   // What it was when it was last looked at.
  int64_t version = 0;        // Torch's count of changes then.
  std::string detached = {};  // Why its changes no longer count; empty while they do.

  /// Remembers the present numbers as those that the trace knows.
  void settle();
  /// Whether any bit is another one now.
  bool has_changed();
  /// Whether nobody else has it.
  bool is_released() const;
};

/// Values in the order in which they were handed out.
class LiveValues {
 public:
  /// Takes a value as it is now.
  void add(LiveValue value);
  /// The value that is this very tensor, or null.
  LiveValue* find(const at::Tensor& held);
  /// Those that are other ones than when they were last settled.
  std::vector<LiveValue*> changed();
  /// Forgets those that nobody else has, unless they were changed.
  void drop_released();
  /// The same, after as many were handed out as there had been: asking who has one takes Python's lock.
  void drop_released_at_times();
  void clear() { values_.clear(); }
  bool empty() const { return values_.empty(); }
  auto begin() { return values_.begin(); }
  auto end() { return values_.end(); }

 private:
  std::vector<LiveValue> values_;
  size_t since_look_ = 0;  // How many were handed out since, large ones counted several times.
};

}  // namespace glassformer
