// Gradients of what a trace handed out, with respect to its nodes and the weights.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/state.h"

namespace glassformer {
namespace {

// Note: nodes that the step of another passes over
// They are on no path of the graph: a fast step skips nodes, and an open one leaves those aside that only the fast one
// takes. Their gradient comes from running the other steps once more, from them to the node that was made past them,
// and taking the product of that node's gradient with the derivative of this little stretch.
class Detour {
 public:
  Detour(TraceState& trace, NodeId from, NodeId to) : trace_(trace), to_(to), was_fast_(trace.tape.values.at(to).fast) {
    from_ = value(from).detach().clone().requires_grad_();
    values_[from] = from_;
    before_ = from;
  }

  at::Tensor gradient(const at::Tensor& gradient_at_end) {
    const at::AutoGradMode on(true);
    const at::Tensor end = run(trace_.graph().node(to_));
    return torch::autograd::grad({end}, {from_}, {gradient_at_end}, false, false, true).front();
  }

 private:
  at::Tensor run(const Node& node) {
    const Step& step = node.id == to_ && !was_fast_ ? node.fast : node.open;
    std::vector<at::Tensor> inputs;
    for (const StepInput& input : step.inputs)
      inputs.push_back(is_left_out(trace_, input) ? at::Tensor() : value(input.node));
    return run_whole_step(trace_, node, step, inputs);
  }

  at::Tensor value(NodeId node) {
    const auto known = values_.find(node);
    if (known != values_.end()) return known->second;
    const auto taped = trace_.tape.values.find(node);
    const bool depends = before_ >= 0 && trace_.graph().reaches(before_, node);
    at::Tensor made;
    if (taped != trace_.tape.values.end() && !depends) {
      made = taped->second.used.detach();
    } else if (trace_.tape.recorded[static_cast<size_t>(node)]) {
      made = run(trace_.graph().node(node));
    } else {
      made = plain_value(trace_, node);
    }
    return values_[node] = made;
  }

  TraceState& trace_;
  NodeId to_, before_ = -1;
  bool was_fast_;
  at::Tensor from_;
  std::map<NodeId, at::Tensor> values_;
};

// One of the nodes or weights that are asked for.
struct Target {
  std::string name;
  NodeId node = -1;             // Of a node that steps pass over, or -1.
  WeightId weight = -1;         // Of a weight, or -1.
  int64_t input = -1;           // The number of its tensor among those to differentiate by; -1: it has none.
  std::vector<NodeId> ends;     // What those steps made,
  std::vector<size_t> at_ends;  // and the numbers of their tensors.
};

class Differentiation {
 public:
  explicit Differentiation(TraceState& trace) : trace_(trace) {}

  void add(const std::string& name) {
    Target target{.name = name, .ends = {}, .at_ends = {}};
    if (trace_.graph().has(name)) {
      const NodeId node = trace_.graph().find(name);
      target.name = trace_.graph().node(node).name;
      add_node(target, node);
    } else {
      const Weights& weights = trace_.family->model->weights();
      if (!weights.has(name)) trace_.graph().find(name);  // Says which names are near.
      const WeightId weight = weights.find(name);
      if (!weights.requires_grad(weight))
        throw InputError(str("weight '", name,
                             "' doesn't require grad: say so before reading what it is to be "
                             "differentiated through"));
      target.weight = weight;
      target.input = add_input(weights.leaf(weight));
    }
    targets_.push_back(std::move(target));
  }

  std::vector<at::Tensor> run(const at::Tensor& scalar, bool allow_unused) {
    std::vector<at::Tensor> gradients(inputs_.size());
    if (!inputs_.empty()) gradients = torch::autograd::grad({scalar}, inputs_, {}, true, false, true);
    std::vector<at::Tensor> results;
    for (const Target& target : targets_) results.push_back(gradient_of(target, gradients, allow_unused));
    return results;
  }

 private:
  int64_t add_input(const at::Tensor& tensor) {
    inputs_.push_back(tensor);
    return static_cast<int64_t>(inputs_.size()) - 1;
  }

  void add_node(Target& target, NodeId node) {
    trace_.begin().require(node);
    if (trace_.graph().node(node).choices > 0) return;
    if (const auto taped = trace_.tape.values.find(node); taped != trace_.tape.values.end())
      target.input = add_input(taped->second.given);
    for (const auto& [end, taped] : trace_.tape.values)
      if (taped.computed.defined() && is_passed_over(node, trace_.graph().node(end), taped.fast)) {
        target.node = node;
        target.ends.push_back(end);
        target.at_ends.push_back(static_cast<size_t>(add_input(taped.computed)));
      }
  }

  bool is_passed_over(NodeId node, const Node& end, bool fast) const {
    if (fast) return std::count(end.skipped.begin(), end.skipped.end(), node) > 0;
    return can_be_fast(trace_, end) && is_beside(trace_.graph(), end, node);
  }

  at::Tensor gradient_of(const Target& target, const std::vector<at::Tensor>& gradients, bool allow_unused) {
    at::Tensor total;
    const auto include = [&](const at::Tensor& part) {
      if (part.defined()) total = total.defined() ? total + part : part;
    };
    if (target.input >= 0) include(gradients[static_cast<size_t>(target.input)]);
    for (size_t i = 0; i < target.ends.size(); ++i)
      if (const at::Tensor& at_end = gradients[target.at_ends[i]]; at_end.defined())
        include(Detour(trace_, target.node, target.ends[i]).gradient(at_end));
    if (!total.defined() && !allow_unused)
      throw InputError(str("the scalar does not depend on ", target.name,
                           " in this trace: it was computed from values of another trace, of another state of this "
                           "one, or of nodes that ",
                           target.name, " does not reach"));
    if (target.weight < 0 || !total.defined()) return total;
    return trace_.family->model->weights().of_leaf(target.weight, total);
  }

  TraceState& trace_;
  std::vector<Target> targets_;
  std::vector<at::Tensor> inputs_;
};

}  // namespace

std::vector<at::Tensor> Trace::grad(const at::Tensor& scalar, const std::vector<std::string>& names,
                                    bool allow_unused) {
  if (!scalar.defined() || scalar.numel() != 1)
    throw ShapeError(
        str("grad takes the gradient of one number; found ", scalar.defined() ? shape_text(scalar.sizes()) : "none"));
  if (!scalar.requires_grad())
    throw InputError(
        "grad: the scalar carries no graph: make it from values that were read while the trace (or a weight) required "
        "grad and gradients were on");
  const InUse in_use(*state_->family);
  Differentiation differentiation(*state_);
  for (const std::string& name : names) differentiation.add(name);
  return differentiation.run(scalar, allow_unused);
}

}  // namespace glassformer
