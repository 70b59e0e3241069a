#pragma once
// Internal to trace/: values that may be released, in the order of their last use.

#include <cstdint>

namespace glassformer {

class Cell;

/// The cells of a family that hold values and are not kept for good. A cell leaves by itself when it ends. What starts
/// a block goes last, and never for what a computation needs only just now: everything in a block is one block's work
/// away from it.
class Shelf {
 public:
  Shelf() = default;
  Shelf(const Shelf&) = delete;
  Shelf& operator=(const Shelf&) = delete;

  /// What all of them hold.
  int64_t bytes() const { return others_.bytes + starts_.bytes; }
  /// A computation needs the cell: it stays until it is unpinned as often.
  void pin(Cell& cell);
  /// The last time, the cell becomes the one that was used last.
  void unpin(Cell& cell);
  /// The cell stays for good.
  void keep(Cell& cell);
  /// To be called when the cell's values have changed.
  void update(Cell& cell);
  /// Empties the cell and takes it out of its lineage.
  void release(Cell& cell);
  /// Releases cells, longest unused first, until the rest fits `budget` or is pinned.
  void trim(int64_t budget);

 private:
  friend class Cell;
  struct Line {
    Cell *oldest = nullptr, *newest = nullptr;  // Of those that are not pinned.
    int64_t bytes = 0;
  };
  Line& line_of(const Cell& cell);
  void remove(Cell& cell);
  void unlink(Cell& cell);

  Line starts_, others_;
};

}  // namespace glassformer
