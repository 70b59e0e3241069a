#include "glassformer/trace/weight_watch.h"

#include "glassformer/base/errors.h"

namespace glassformer {

WeightWatch::WeightWatch(const Model& model) : reached_(model.graph().nodes().size()) {
  const Weights& weights = model.weights();
  declared_ = weights.declared_changes();
  for (size_t id = 0; id < weights.specs().size(); ++id) changes_.push_back(weights.changes(static_cast<WeightId>(id)));
}

std::optional<WeightId> WeightWatch::changed(const Model& model) const {
  for (size_t id = 0; id < changes_.size(); ++id)
    if (const auto weight = static_cast<WeightId>(id); model.weights().changes(weight) != changes_[id]) return weight;
  if (model.weights().declared_changes() != declared_) return kSomeWeight;
  return std::nullopt;
}

bool WeightWatch::update(const Model& model) {
  if (!changed(model)) return false;
  ++epoch_;
  const int64_t declared = model.weights().declared_changes();
  std::vector<bool> is_changed(changes_.size());
  for (size_t id = 0; id < changes_.size(); ++id) {
    const int64_t changes = model.weights().changes(static_cast<WeightId>(id));
    is_changed[id] = changes != changes_[id];
    changes_[id] = changes;
  }
  const auto reach = [&](Reached& reached, const Step& step) {
    for (WeightId weight : step.weights)
      if (is_changed[static_cast<size_t>(weight)] || declared != declared_)
        reached = {epoch_, is_changed[static_cast<size_t>(weight)] ? weight : kSomeWeight};
    for (const StepInput& input : step.inputs)
      if (reached.epoch != epoch_ && epoch_of(input.node) == epoch_) reached = {epoch_, cause_of(input.node)};
  };
  for (const Node& node : model.graph().nodes()) {
    Reached& reached = reached_[static_cast<size_t>(node.id)];
    reach(reached, node.open);
    reach(reached, node.fast);
  }
  declared_ = declared;
  return true;
}

std::string weight_text(const Model& model, WeightId weight) {
  if (weight == kSomeWeight) return "a weight";
  return str("weight '", model.weights().specs()[static_cast<size_t>(weight)].name, "'");
}

}  // namespace glassformer
