#pragma once
// Internal to trace/: what makes one trace of a family differ from another.

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "glassformer/trace/hook.h"
#include "glassformer/trace/region.h"

namespace glassformer {

struct Edit;
struct JointHook;
class Lineage;

/// Where an edit counts among those of its node: in the order of making, with what a hook makes in the hook's place.
using EditPlace = std::pair<uint64_t, uint64_t>;
constexpr EditPlace kBeforeAll{0, 0}, kAfterAll{UINT64_MAX, UINT64_MAX};

/// What a hook's input depended on: the epoch of the weights (see `WeightWatch`), the segment's ends, and the lineage.
using HookKey = std::tuple<int64_t, int64_t, int64_t, uint64_t>;

/// What a hook made of one segment.
struct HookResult {
  int64_t begin = 0, end = 0;      // The segment.
  std::shared_ptr<Edit> overlay;   // Null where it changed nothing.
  int64_t from = 0;                // The first position that it changed.
  std::shared_ptr<void> use = {};  // Shared by the traces that have it now; null in the hook's memory.
};

/// A hook's call, kept as long as the hook: one that reads no other nodes is never called again with the same numbers.
struct HookMemory {
  at::Tensor input;
  HookResult result;
};

/// A function on a node, as an edit holds it.
struct Hook {
  HookFunction function;
  HookOptions options;
  std::shared_ptr<JointHook> joint;                          // Of a batch: called once for all its traces.
  std::unordered_multimap<uint64_t, HookMemory> calls = {};  // By a hash of the input.
  // By segment and what the input depended on: computed again it may differ in rounding, and is the same input.
  std::map<HookKey, HookResult> by_lineage = {};
  std::vector<std::shared_ptr<Edit>> made = {};  // Ends with the hook.
  // Other nodes that its calls have read: its results depend on these too, so nothing is remembered of such a hook.
  std::set<NodeId> looked_at = {};
};

struct Edit {
  enum class Kind {
    kOverlay,   // Numbers in a region of a node.
    kHook,      // A function; what it changes are overlays of their own.
    kGradient,  // A function of the node's gradient; changes no value.
    kTokens,    // Other tokens from a position on than the trace it was forked from.
    kLength,    // Rotary angles of a longer sequence.
  };
  uint64_t id = 0;  // In the order of making.
  EditPlace place;
  Kind kind = Kind::kOverlay;
  NodeId node = -1;
  int64_t first_row = 0;
  std::optional<Overlay> overlay;
  at::Tensor made_from;  // Of a derived overlay: the value that it was made from.
  RowSet made_from_rows;
  std::vector<std::pair<uint64_t, int64_t>> made_under;  // And what that depended on: edits and their first positions,
  std::vector<uint64_t> made_after;                      // the edits that could reach it then,
  int64_t made_epoch = 0;                                // and with which weights, see `WeightWatch`.
  std::optional<Hook> hook;
  GradientFunction gradient;
  int64_t length_class = 0;               // kLength
  std::unordered_set<Lineage*> lineages;  // Those whose last influence it is: they end with it.
  std::weak_ptr<void> users;              // Of what a hook made: see `HookResult::use`.

  bool changes_values() const { return kind == Kind::kOverlay || kind == Kind::kHook; }
  bool is_put() const { return changes_values() || kind == Kind::kGradient; }
};

constexpr int64_t kNothing = INT64_MAX;  // The first position that an edit without effect changes.

/// An edit as one trace has it.
struct Entry {
  std::shared_ptr<Edit> edit;
  std::optional<int64_t> from = {};      // Once known: the first position that it changes, or `kNothing`.
  std::vector<HookResult> results = {};  // Of a hook: what it made of the segments, as far as it was called.
  uint64_t settled_under = 0;            // What it was compared with when `from` was found out last,
  int64_t settled = -1;                  // and what came out; -1: never.

  /// Whether it is known to change something; what a hook changes are its results' overlays.
  bool changes() const {
    return from && *from != kNothing && edit->kind != Edit::Kind::kHook && edit->kind != Edit::Kind::kGradient;
  }
};

}  // namespace glassformer
