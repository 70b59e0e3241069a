#pragma once
// Internal to graph/: the mathematics of mixtures of experts. `row` is batch and pos in one; a row has a `slot` for
// each of the experts that it goes through.

#include <vector>

#include "glassformer/graph/steps.h"

namespace glassformer::steps {

/// One linear map of each expert. `biases` is empty where there are none.
struct ExpertWeights {
  std::vector<WeightId> weights, biases;
};

/// All of them.
struct ExpertMlps {
  ExpertWeights gate, in, out;
};

/// row expert (the router's logits) -> row expert: how much of each expert a row is to get, in float32, as every
/// implementation has it, so that all choose alike.
Run expert_weights(const Experts& experts);
/// row expert -> row slot: the `count` experts with the largest numbers, largest first; int64.
Run choose(int64_t count);
/// (x: row in, or row slot in; row slot: which experts) -> row slot out, each slot through its expert's map.
/// `InputError` for an expert that there isn't.
Run expert_linear(const ExpertWeights& weights);
/// (row slot d_model; which experts; row expert: weights) -> row d_model: the sum over slots, weighted.
Run mix_experts(const Experts& experts);
/// (row d_model; which experts; row expert: weights) -> row d_model: all of that at once, without the steps between.
Run fused_experts(const Experts& experts, const ExpertMlps& mlps, const ActivationStep& activation);

}  // namespace glassformer::steps
