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
  /// Whether nobody but the trace has it.
  bool is_released() const;
};

}  // namespace glassformer
