// Values in users' hands: handing them out, and making edits of what was changed in them.

#include "glassformer/trace/live.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/COW.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/graph/changes.h"
#include "glassformer/trace/state.h"

namespace glassformer {

void LiveValue::settle() {
  version = changes_of(held);
  baseline = lazy_clone_detached(held);
}

bool LiveValue::has_changed() {
  // Torch counts its own writes, and a write of any kind ends the sharing of memory.
  const bool shared = c10::impl::cow::is_cow_data_ptr(held.storage().data_ptr());
  if (shared && version == changes_of(held)) return false;
  const at::Tensor now = held.detach();
  if (now.sizes() != baseline.sizes() || now.scalar_type() != baseline.scalar_type()) return true;
  if (now.numel() > 0 && first_difference(now, baseline, RowSet(0, now.size(0)), 0) >= 0) return true;
  version = changes_of(held);
  return false;
}

// A Python object around the tensor holds one reference to it, and lives itself as long as we hold another.
bool LiveValue::is_released() const {
  const c10::impl::PyObjectSlot* const wrapped = held.unsafeGetTensorImpl()->pyobj_slot();
  const bool in_python = wrapped->load_pyobj() != nullptr;
  const bool is_ours = in_python ? held.use_count() == 2 && wrapped->has_unique_reference() : held.use_count() == 1;
  return is_ours && held.storage().use_count() == 1;
}

void LiveValues::add(LiveValue value) {
  constexpr size_t kBytesToLookAfter = size_t{32} << 10;
  since_look_ += 1 + value.held.nbytes() / kBytesToLookAfter;
  values_.push_back(std::move(value));
  values_.back().settle();
}

LiveValue* LiveValues::find(const at::Tensor& held) {
  const auto found = std::find_if(begin(), end(), [&](const LiveValue& value) { return value.held.is_same(held); });
  return found == end() ? nullptr : &*found;
}

std::vector<LiveValue*> LiveValues::changed() {
  std::vector<LiveValue*> found;
  for (LiveValue& value : values_)
    if (value.has_changed()) found.push_back(&value);
  return found;
}

void LiveValues::drop_released() {
  std::erase_if(values_, [](LiveValue& value) { return value.is_released() && !value.has_changed(); });
  since_look_ = 0;
}

void LiveValues::drop_released_at_times() {
  if (since_look_ >= std::max<size_t>(values_.size() / 2, 32)) drop_released();
}

namespace {

bool is_sorted_once(const std::vector<int64_t>& rows) {
  return std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end();
}

bool covers_all(const LiveValue& value, const TraceState& trace) {
  return static_cast<int64_t>(value.rows.size()) == trace.length - trace.begin().first(value.node);
}

// What a user holds at the node's place, zeros around it. The node may have grown since, or been cut. A clone goes
// there, since torch keeps for the gradient what is copied, and the user may change it again.
at::Tensor in_place(const at::Tensor& part, const LiveValue& value, const Node& node,
                    const std::vector<int64_t>& shape) {
  const auto row_axis = static_cast<size_t>(node.row_axis);
  const at::Tensor rows = at::tensor(value.rows, at::TensorOptions(at::kLong)).to(part.device());
  std::vector<int64_t> wide = shape;
  wide[row_axis] = std::max(shape[row_axis], value.rows.back() + 1);
  if (node.has_keys()) wide[3] = std::max(shape[3], part.size(3));
  const at::Tensor placed = at::zeros(wide, part.options());
  (node.has_keys() ? placed.narrow(3, 0, part.size(3)) : placed).index_copy_(node.row_axis, rows, lazy_clone(part));
  const at::Tensor kept = placed.narrow(node.row_axis, 0, shape[row_axis]);
  return node.has_keys() ? kept.narrow(3, 0, shape[3]) : kept;
}

// A region of the value that a user holds, as one of the node.
Region in_node(const Region& region, const LiveValue& value, const Node& node, const std::vector<int64_t>& shape) {
  const auto row_axis = static_cast<size_t>(node.row_axis);
  if (region.mask().defined()) {
    const at::Tensor mask = in_place(region.mask(), value, node, shape);
    if (!mask.sum().equal(region.mask().sum()))
      throw InputError(str(node.name, ": a value was changed at positions that the trace has no more"));
    return Region::where(mask);
  }
  Region whole;
  bool has_rows = false, has_keys = false;
  for (Region::AxisIndices axis : region.axes()) {
    has_keys = has_keys || axis.axis == 3;
    has_rows = has_rows || axis.axis == row_axis;
    for (int64_t& index : axis.indices) {
      if (index < 0) index += value.held.size(static_cast<int64_t>(axis.axis));  // The node may have more keys by now.
      if (axis.axis == row_axis) index = value.rows[static_cast<size_t>(index)];
    }
    whole.at_axis(axis.axis, axis.indices, axis.drop);
  }
  if (!has_rows && value.rows != RowSet(0, shape[row_axis]).rows()) whole.at_axis(row_axis, value.rows);
  if (const int64_t n_keys = node.has_keys() ? value.held.size(3) : 0; !has_keys && n_keys > 0 && n_keys != shape[3])
    whole.at_axis(3, RowSet(0, n_keys).rows());
  return whole;
}

}  // namespace

at::Tensor TraceState::hand_out(NodeId node, const Positions& positions) {
  TraceState* const self = this;
  at::Tensor value = read_states(std::span<TraceState* const>(&self, 1), node, positions).front();
  const std::vector<int64_t> rows = rows_of(node, positions);
  if (in_hook >= 0 || !is_sorted_once(rows) || live.find(value) != nullptr) return value;
  live.add({node, rows, value});
  return value;
}

void TraceState::detach_live(NodeId changed, const std::string& because, const at::Tensor& except) {
  for (LiveValue& value : live) {
    const bool own = except.defined() && value.held.is_same(except);
    const bool concerned = changed < 0 || value.node == changed || begin().reaches(changed, value.node);
    if (concerned && !own && value.detached.empty()) value.detached = because;
  }
}

void TraceState::collect_live() {
  if (live.empty() || in_hook >= 0) return;
  std::vector<LiveValue*> changed = live.changed();
  std::stable_sort(changed.begin(), changed.end(),
                   [](const LiveValue* a, const LiveValue* b) { return a->node < b->node; });
  std::string refused;
  for (LiveValue* value : changed) {
    const Node& node = graph().node(value->node);
    const at::Tensor before = value->baseline;
    value->settle();
    if (!value->detached.empty()) {
      refused = str(node.name, ": a value that was read before ", value->detached,
                    " was changed in place: read it again and change that (the change was dropped)");
      continue;
    }
    insert(make_derived(node, value->held, value->rows, before), value->held);
    adopt(*value);
  }
  live.drop_released_at_times();
  if (!refused.empty()) throw StaleEditError(refused);
}

// With a graph, what the user changed is on the way to everything that is computed from now on.
void TraceState::adopt(const LiveValue& value) {
  const auto taped = tape.values.find(value.node);
  if (taped == tape.values.end() || !taped->second.given.is_same(value.held)) return;
  taped->second.used = lazy_clone(value.held);
  taped->second.n_applied = n_edits(value.node);
}

std::shared_ptr<Edit> TraceState::make_derived(const Node& node, const at::Tensor& value,
                                               const std::vector<int64_t>& rows, const at::Tensor& source) {
  Region region;
  if (static_cast<int64_t>(rows.size()) < length) region.at_axis(static_cast<size_t>(node.row_axis), rows);
  std::shared_ptr<Edit> edit = make_overlay(node, value, region, length);
  edit->made_from = source;
  edit->made_from_rows = RowSet::of(rows);
  if (next_unresolved(node.id) == nullptr) {
    for (const Influence& influence : family->lineages.at(lineage_of(node.id), node.id, length - 1).influences())
      edit->made_under.emplace_back(influence.edit->id, influence.from);
  } else {
    edit->made_under = {{0, 0}};  // Not found out, as with a graph: under no lineage, so the numbers are compared.
  }
  edit->made_after = edits_before(node.id, edit->made_from_rows);
  edit->made_epoch = weight_epoch;
  return edit;
}

bool TraceState::assigned(const at::Tensor& held, const Region& region, const at::Tensor& numbers,
                          const at::Tensor& value) {
  LiveValue* const own = live.find(held);
  if (own == nullptr) return false;
  const bool writes_back = value.defined() && value.is_alias_of(held) && !own->has_changed();  // `x[i] += 1`
  own->settle();
  if (!writes_back && numbers.numel() > 0) {
    const Node& node = graph().node(own->node);
    const std::vector<int64_t> shape = shape_of(node, length);
    const at::Tensor given = region.mask().defined() ? in_place(numbers, *own, node, shape) : numbers;
    std::shared_ptr<Edit> edit = make_overlay(node, given, in_node(region, *own, node, shape), length);
    if (!edit->overlay->rows().empty()) insert(std::move(edit), held);
  }
  if (own->detached.empty()) adopt(*own);
  return true;
}

bool TraceState::is_present(const at::Tensor& value, const Node& node, const Region& region) {
  const LiveValue* const own = live.find(value);
  if (own == nullptr || own->node != node.id || !own->detached.empty() || region.mask().defined()) return false;
  if (region.axes().empty()) return covers_all(*own, *this);
  const Region::AxisIndices& axis = region.axes().front();
  return region.axes().size() == 1 && axis.word.empty() && !axis.drop &&
         axis.axis == static_cast<size_t>(node.row_axis) && axis.indices == own->rows;
}

}  // namespace glassformer
