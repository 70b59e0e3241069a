#include "glassformer/trace/evaluator.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// A cell that must stay until what needs it has run.
struct Use {
  Family* family;
  Cell* cell;
  bool is_new;  // Empty before this evaluation.
};

// Rows of one cell that this evaluation computes.
struct Item {
  Item(Family& in, Lineage& under, Cell& filled) : family(&in), lineage(&under), cell(&filled) {}

  Family* family;
  Lineage* lineage;
  Cell* cell;
  RowSet rows;
  const Step* step = nullptr;          // Null: the node's last own overlay is put onto what lies below it.
  const Influence* overlay = nullptr;  // That overlay.
  int64_t n_keys = 0;
  std::vector<Use> uses;
};

at::Tensor with_keys(const at::Tensor& value, int64_t n_keys, float absent) {
  const int64_t missing = n_keys - value.size(3);
  if (missing == 0) return value;
  return missing > 0 ? at::constant_pad_nd(value, {0, missing}, absent) : value.narrow(3, 0, n_keys);
}

// How many numbers the pieces have if they are parts of one tensor, one behind the other, as values are that were
// computed together; else 0.
int64_t length_end_to_end(const std::vector<at::Tensor>& pieces) {
  const at::Tensor& first = pieces.front();
  int64_t end = first.storage_offset();
  for (const at::Tensor& piece : pieces) {
    if (!piece.is_contiguous() || !piece.is_alias_of(first) || piece.storage_offset() != end ||
        piece.scalar_type() != first.scalar_type() || piece.sizes().slice(1) != first.sizes().slice(1))
      return 0;
    end += piece.numel();
  }
  return end - first.storage_offset();
}

at::Tensor joined(const std::vector<at::Tensor>& pieces, int64_t axis) {
  if (pieces.size() == 1) return pieces.front();
  const int64_t length = axis == 0 ? length_end_to_end(pieces) : 0;
  if (length == 0) return at::cat(pieces, axis);
  std::vector<int64_t> shape = pieces.front().sizes().vec();
  shape[0] = -1;
  return pieces.front().as_strided({length}, {1}).view(shape);
}

class Evaluation {
 public:
  Evaluation(const std::vector<Request>& requests, const EvaluateOptions& options)
      : options_(options), graph_(requests.front().family->graph()), items_(graph_.nodes().size()) {
    for (const Request& request : requests)
      demand(request.family, request.lineage, request.node, request.rows, callers_);
    if (options.keep_requested)
      for (const Request& request : requests) keep(request);
  }

  Evaluation(const Evaluation&) = delete;
  ~Evaluation() {
    for (const Items& items : items_)
      for (const auto& [cell, item] : items) unpin(item.uses);
    unpin(callers_);
  }

  void run() {
    for (auto node = static_cast<NodeId>(items_.size()) - 1; node >= 0; --node) plan(node);
    for (NodeId node = 0; node < static_cast<NodeId>(items_.size()); ++node) compute(node);
  }

 private:
  using Items = std::map<Cell*, Item>;

  static void unpin(const std::vector<Use>& uses) {
    for (const Use& use : uses) use.family->shelf.unpin(*use.cell);
  }

  void keep(const Request& request) {
    for_each_part(request, [&](Lineage& lineage, const Node& node, const RowSet&) {
      request.family->shelf.keep(lineage.cell(node));
    });
  }

  template <typename Visit>
  void for_each_part(const Request& request, const Visit& visit) {
    const Node& node = graph_.node(request.node);
    for (const Part& part : request.family->lineages.parts(*request.lineage, node, request.rows))
      visit(*part.lineage, node, RowSet(part.rows.begin, part.rows.end));
  }

  void demand(Family* family, Lineage* lineage, NodeId node, const RowSet& rows, std::vector<Use>& uses) {
    for_each_part({family, lineage, node, rows}, [&](Lineage& owner, const Node& which, const RowSet& part) {
      Cell& cell = owner.cell(which);
      if (!cell.kept()) {
        family->shelf.pin(cell);
        uses.push_back({family, &cell, cell.valid().empty()});
      }
      const RowSet missing = part.without(cell.valid());
      if (missing.empty()) return;
      Item& item = items_[static_cast<size_t>(node)].try_emplace(&cell, Item(*family, owner, cell)).first->second;
      item.rows = item.rows.united(missing);
    });
  }

  // An overlay's item needs the same node's item without that overlay, so planning goes on until no new one appears.
  void plan(NodeId id) {
    Items& items = items_[static_cast<size_t>(id)];
    std::map<Cell*, RowSet> planned;
    for (bool changed = true; changed;) {
      changed = false;
      for (auto& [cell, item] : items) {
        const RowSet fresh = item.rows.without(planned[cell]);
        if (fresh.empty()) continue;
        planned[cell] = item.rows;
        plan(item, fresh, graph_.node(id));
        changed = true;
      }
    }
  }

  void plan(Item& item, const RowSet& rows, const Node& node) {
    if (item.lineage->edits(node.id)) {
      item.overlay = item.lineage->overlay_on(node.id);
      const Overlay& overlay = *item.overlay->edit->overlay;
      const RowSet below = replaces_rows(item, node) ? rows.without(overlay.rows()) : rows;
      if (!below.empty()) demand(item.family, &beneath(item), node.id, below, item.uses);
      return;
    }
    if (is_given(item, node)) return;
    item.step = &item.family->step_of(node, *item.lineage);
    item.n_keys = std::max(item.rows.end(), item.lineage->later_keys(graph_, node.id));
    const Family& family = *item.family;
    if (family.query_mask && item.rows.first() < family.query_mask->end_row())
      item.n_keys = std::max(item.n_keys, family.lineages.keys_ahead());
    for (const StepInput& input : item.step->inputs) {
      if (input.optional && is_default(item, input.node)) continue;
      demand(item.family, item.lineage, input.node, input.reach == Reach::kSameRow ? rows : RowSet(0, item.n_keys),
             item.uses);
    }
  }

  // Whether nothing below the overlay shows in its rows. Rows of a weighting may have grown: scores of the same layer,
  // edited since, can reach keys that the overlay doesn't know.
  bool replaces_rows(const Item& item, const Node& node) const {
    const Overlay& overlay = *item.overlay->edit->overlay;
    if (!overlay.whole_rows()) return false;
    return !node.is_weighting() || item.lineage->later_keys(graph_, node.mixed_by) <= overlay.n_keys();
  }

  static bool is_given(const Item& item, const Node& node) {
    return node.is_input || node.id == item.family->begin().source();
  }

  static bool is_default(const Item& item, NodeId node) {
    return !item.family->mask_given && !item.lineage->edits(node);
  }

  Lineage& beneath(const Item& item) { return item.family->lineages.without(*item.lineage, *item.overlay); }

  void compute(NodeId id) {
    Items& items = items_[static_cast<size_t>(id)];
    if (items.empty()) return;
    const Node& node = graph_.node(id);
    std::vector<Item*> overlays;
    std::map<std::tuple<const Step*, int64_t>, std::vector<Item*>> by_step;
    for (auto& [cell, item] : items) {
      if (item.family->poll) item.family->poll();
      if (item.overlay != nullptr) {
        overlays.push_back(&item);
      } else if (is_given(item, node)) {
        finish(item, node, default_input(item, node));
      } else {
        by_step[{item.step, item.lineage->length_class()}].push_back(&item);
      }
    }
    for (auto& [key, group] : by_step) {
      // In one order at every node, so that what a step put out together goes into the next one as it is.
      std::sort(group.begin(), group.end(), [](const Item* a, const Item* b) {
        return std::pair(a->family, a->lineage->id()) < std::pair(b->family, b->lineage->id());
      });
      if (std::get<0>(key)->by_row) {
        run_by_row(node, group);
      } else {
        run_whole(node, group);
      }
    }
    std::sort(overlays.begin(), overlays.end(),
              [](const Item* a, const Item* b) { return a->lineage->size() < b->lineage->size(); });
    for (Item* item : overlays) put_overlay(*item, node);
  }

  void put_overlay(Item& item, const Node& node) {
    const Overlay& overlay = *item.overlay->edit->overlay;
    const RowSet covered = item.rows.without(item.rows.without(overlay.rows()));
    const RowSet untouched = item.rows.without(covered);
    item.family->shelf.keep(*item.cell);
    Lineage& below = beneath(item);
    if (!untouched.empty()) store(item, node, untouched, gather({item.family, &below, node.id, untouched}));
    if (!covered.empty()) {
      at::Tensor base;
      if (!replaces_rows(item, node)) base = gather({item.family, &below, node.id, covered});
      store(item, node, covered, overlay.applied(base, covered));
    }
    release(item);
  }

  at::Tensor default_input(const Item& item, const Node& node) {
    const at::Device device = item.family->model->weights().device();
    const int64_t rows = item.rows.count();
    if (node.id == graph_.attention_mask())
      return at::ones({item.family->batch, rows}, at::TensorOptions(at::kBool).device(device));
    if (node.id != graph_.positions())  // Nothing but a fault of ours comes here; no numbers may be made up.
      throw UnavailableError(str(node.name, ": its values at position ", item.rows.first(), " were not given"));
    return at::tensor(item.rows.rows(), at::TensorOptions(at::kLong))
        .to(device)
        .unsqueeze(0)
        .expand({item.family->batch, rows});
  }

  at::Tensor input_of(const Item& item, const StepInput& input) {
    if (input.optional && is_default(item, input.node)) return {};
    const RowSet rows = input.reach == Reach::kSameRow ? item.rows : RowSet(0, item.n_keys);
    const bool to_mixed = graph_.node(input.node).mixed_by >= 0 && item.step->inputs.size() > 1;
    return gather({item.family, item.lineage, input.node, rows}, to_mixed ? item.n_keys : -1);
  }

  at::Tensor call(const Item& item, const std::vector<at::Tensor>& inputs, const QueryMask* query_mask = nullptr) {
    return item.step->run(
        {inputs, item.family->model->weights(), item.rows, item.n_keys, item.lineage->length_class(), query_mask});
  }

  void run_by_row(const Node& node, const std::vector<Item*>& group) {
    std::vector<at::Tensor> inputs;
    for (const StepInput& input : group.front()->step->inputs) {
      std::vector<at::Tensor> pieces;
      for (const Item* item : group) pieces.push_back(input_of(*item, input).flatten(0, 1));
      inputs.push_back(joined(pieces, 0));
    }
    const at::Tensor output = call(*group.front(), inputs);
    int64_t offset = 0;
    for (Item* item : group) {
      const int64_t batch = item->family->batch, rows = item->rows.count();
      finish(*item, node, output.narrow(0, offset, batch * rows).unflatten(0, {batch, rows}));
      offset += batch * rows;
    }
  }

  void run_whole(const Node& node, const std::vector<Item*>& group) {
    using Alike = std::pair<std::vector<int64_t>, int64_t>;
    std::map<Alike, std::vector<Item*>> alike;
    for (Item* item : group) {
      std::vector<int64_t> shape = {item->family->mask_given};
      if (item->family->query_mask)
        shape.push_back(reinterpret_cast<intptr_t>(item->family));  // It has one of its own.
      for (const Interval& interval : item->rows.intervals()) shape.insert(shape.end(), {interval.begin, interval.end});
      for (const StepInput& input : item->step->inputs)
        shape.push_back(input.optional && is_default(*item, input.node));
      alike[{shape, item->n_keys}].push_back(item);
    }
    for (auto& [shape, items] : alike) {
      std::vector<at::Tensor> inputs;
      for (const StepInput& input : items.front()->step->inputs) {
        std::vector<at::Tensor> pieces;
        for (const Item* item : items) pieces.push_back(input_of(*item, input));
        inputs.push_back(pieces.front().defined() ? stacked(pieces, graph_.node(input.node)) : at::Tensor());
      }
      std::optional<QueryMask> query_mask = items.front()->family->query_mask;
      if (query_mask) query_mask->allowed = query_mask->allowed.repeat({static_cast<int64_t>(items.size()), 1, 1});
      const at::Tensor output = call(*items.front(), inputs, query_mask ? &*query_mask : nullptr);
      int64_t offset = 0;
      for (Item* item : items) {
        finish(*item, node, output.narrow(0, offset, item->family->batch));
        offset += item->family->batch;
      }
    }
  }

  // Traces side by side; their weightings may know of different numbers of keys.
  static at::Tensor stacked(std::vector<at::Tensor>& pieces, const Node& node) {
    if (node.has_keys()) {
      int64_t n_keys = 0;
      for (const at::Tensor& piece : pieces) n_keys = std::max(n_keys, piece.size(3));
      for (at::Tensor& piece : pieces) piece = with_keys(piece, n_keys, node.absent);
    }
    return joined(pieces, 0);
  }

  void finish(Item& item, const Node& node, const at::Tensor& value) {
    if (!node.is_input)
      item.family->rows_computed[static_cast<size_t>(node.id)] += item.family->batch * item.rows.count();
    if (item.family->keeps(node) && !may_drop(*item.lineage, *item.family)) item.family->shelf.keep(*item.cell);
    // What stays must not hold the values of all traces that it was computed with.
    const auto bytes = static_cast<size_t>(value.numel() * static_cast<int64_t>(value.element_size()));
    const bool part_of_more = item.cell->kept() && value.storage().nbytes() > 2 * bytes;
    store(item, node, item.rows, part_of_more ? value.clone() : value);
    release(item);
  }

  bool may_drop(const Lineage& lineage, Family& family) const {
    return options_.lean && &lineage != &family.lineages.root();
  }

  static void store(const Item& item, const Node& node, const RowSet& rows, const at::Tensor& value) {
    const bool growing = node.attended && item.cell->kept();
    if (growing && item.cell->valid().empty() && rows.first() > 0) {
      Lineage* before = item.family->lineages.alike_until(*item.lineage, node.id, rows.first() - 1);
      const Cell* cell = before != nullptr ? before->known_cell(node.id) : nullptr;
      if (cell != nullptr) item.cell->go_on_from(*cell, rows.first());
    }
    item.cell->insert(rows, value, growing);
    item.family->shelf.update(*item.cell);
  }

  // After an item has run, what only it still needed may go.
  void release(Item& item) {
    std::vector<Use> uses = std::move(item.uses);
    item.uses.clear();
    unpin(uses);
    std::sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) { return a.cell < b.cell; });
    const auto same = [](const Use& a, const Use& b) { return a.cell == b.cell; };
    uses.erase(std::unique(uses.begin(), uses.end(), same), uses.end());
    for (const Use& use : uses) {
      const Keep::What what = use.family->keep.what;
      if (!use.is_new || use.cell->kept() || use.cell->pinned() || what == Keep::What::kAll) continue;
      if (may_drop(use.cell->owner(), *use.family) || what == Keep::What::kNeeded) use.family->shelf.release(*use.cell);
    }
    item.family->trim();
  }

  EvaluateOptions options_;
  const Graph& graph_;
  std::vector<Items> items_;
  std::vector<Use> callers_;
};

// Marks families while their steps run: these may be users' code, which must not ask for what is being computed.
class Computing {
 public:
  explicit Computing(const std::vector<Request>& requests) {
    for (const Request& request : requests) {
      if (std::count(families_.begin(), families_.end(), request.family) > 0) continue;
      if (request.family->computing) {
        finish();
        throw OrderError("a step is running: its trace can't be read from inside; make what it needs its node's input");
      }
      request.family->computing = true;
      families_.push_back(request.family);
    }
  }
  ~Computing() { finish(); }
  Computing(const Computing&) = delete;
  Computing& operator=(const Computing&) = delete;

 private:
  void finish() {
    for (Family* family : families_) family->computing = false;
  }

  std::vector<Family*> families_;
};

}  // namespace

void evaluate(const std::vector<Request>& requests, const EvaluateOptions& options) {
  if (requests.empty()) return;
  {
    const Computing computing(requests);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    Evaluation(requests, options).run();
  }
  if (!options.trim) return;
  for (const Request& request : requests) request.family->trim();
}

at::Tensor gather(const Request& request, int64_t n_keys) {
  const Node& node = request.family->graph().node(request.node);
  const std::vector<Part> parts = request.family->lineages.parts(*request.lineage, node, request.rows);
  std::vector<at::Tensor> pieces;
  for (const Part& part : parts) part.lineage->cell(node).collect(part.rows, pieces);
  if (node.has_keys()) {
    if (n_keys < 0)
      for (const at::Tensor& piece : pieces) n_keys = std::max(n_keys, piece.size(3));
    for (at::Tensor& piece : pieces) piece = with_keys(piece, n_keys, node.absent);
  }
  const at::Tensor value = joined(pieces, node.row_axis);
  constexpr size_t kMany = 8;
  if (pieces.size() >= kMany && node.attended && request.rows.contiguous()) {
    // Those who go on from here find the rows side by side.
    Lineage& owner = *parts.back().lineage;
    Cell& last = owner.cell(node);
    const bool is_whole = last.kept() && last.valid().without(request.rows).empty();
    if (is_whole && request.family->lineages.alike_until(*request.lineage, node.id, request.rows.end() - 1) == &owner)
      last.join(request.rows.intervals().front(), value);
  }
  return value;
}

int64_t first_difference(const at::Tensor& value, const at::Tensor& other, const RowSet& rows, int row_axis) {
  const auto bits = [](const at::Tensor& tensor) {
    switch (tensor.element_size()) {
      case 1:
        return tensor.contiguous().view(at::kByte);
      case 2:
        return tensor.contiguous().view(at::kShort);
      case 4:
        return tensor.contiguous().view(at::kInt);
      default:
        return tensor.contiguous().view(at::kLong);
    }
  };
  const at::Tensor a = bits(value), b = bits(other);
  if (at::equal(a, b)) return -1;
  const at::Tensor differs = a.ne(b).transpose(0, row_axis).flatten(1).any(1);
  return rows.rows()[static_cast<size_t>(differs.nonzero()[0][0].item<int64_t>())];
}

}  // namespace glassformer
