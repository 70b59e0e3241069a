#include "glassformer/analysis/lens.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>

#include <algorithm>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// One layer's logits (batch pos d_vocab), boiled down to what was asked for.
struct LayerReading {
  at::Tensor ids, logits, probabilities, target_logit, target_probability, target_rank, all;
};

LayerReading boil_down(const at::Tensor& logits, const LensOptions& options) {
  LayerReading reading;
  std::tie(reading.logits, reading.ids) = at::topk(logits, options.top_k);
  const at::Tensor total = logits.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).logsumexp(-1);
  reading.probabilities = (reading.logits - total.unsqueeze(-1)).exp();
  if (options.target) {
    reading.target_logit = logits.select(-1, *options.target);
    reading.target_probability = (reading.target_logit - total).exp();
    reading.target_rank = (logits > reading.target_logit.unsqueeze(-1)).sum(-1);
  }
  if (options.return_logits) reading.all = logits;
  return reading;
}

at::Tensor stacked(const std::vector<LayerReading>& readings, at::Tensor LayerReading::*field) {
  std::vector<at::Tensor> parts;
  for (const LayerReading& reading : readings) parts.push_back(reading.*field);
  return parts.front().defined() ? at::stack(parts) : at::Tensor();
}

// Logits are wide: never hold those of all layers unless they were asked for, and of long inputs those of few.
size_t layers_at_once(const Trace& trace, const Positions& positions) {
  constexpr int64_t kMost = 8, kNumbers = int64_t{1} << 28;
  const auto n_positions = positions ? static_cast<int64_t>(positions->size()) : trace.length();
  const int64_t numbers = std::max<int64_t>(1, trace.batch() * n_positions) * trace.model().config().d_vocab_out;
  return static_cast<size_t>(std::clamp<int64_t>(kNumbers / numbers, 1, kMost));
}

}  // namespace

LensResult logit_lens(Trace& trace, const LensOptions& options) {
  const at::NoGradGuard no_grad;
  const ModelConfig& config = trace.model().config();
  if (options.top_k < 1 || options.top_k > config.d_vocab_out)
    throw InputError(str("top_k is ", options.top_k, "; expected 1 to ", config.d_vocab_out));
  if (options.target && (*options.target < 0 || *options.target >= config.d_vocab_out))
    throw InputError(str("token ", *options.target, " is outside the vocabulary of ", config.d_vocab_out));
  const std::string last = str("blocks.", config.n_layers - 1, ".hook_resid_post");
  LensResult result;
  int64_t done = 0;
  const auto report = [&] {  // Each layer is computed, and then read.
    if (options.progress) options.progress(++done, 2 * (config.n_layers + 1));
  };
  std::vector<Trace> forks;
  for (int64_t layer = 0; layer <= config.n_layers; ++layer) {
    result.layers.push_back(layer == 0 ? "embed" : std::to_string(layer - 1));
    forks.push_back(trace.fork());
    if (layer < config.n_layers) forks.back().set(last, trace.read(str("blocks.", layer, ".hook_resid_pre")));
    report();
  }
  std::vector<LayerReading> readings;
  const size_t at_once = layers_at_once(trace, options.positions);
  for (size_t begin = 0; begin < forks.size(); begin += at_once) {
    std::vector<Trace*> part;
    for (size_t i = begin; i < std::min(begin + at_once, forks.size()); ++i) part.push_back(&forks[i]);
    for (const at::Tensor& logits : read_all(part, "logits", options.positions)) {
      readings.push_back(boil_down(logits, options));
      report();
    }
    for (Trace* fork : part) *fork = trace.fork();  // Lets go of what it held.
  }
  result.top_ids = stacked(readings, &LayerReading::ids);
  result.top_logits = stacked(readings, &LayerReading::logits);
  result.top_probabilities = stacked(readings, &LayerReading::probabilities);
  result.target_logit = stacked(readings, &LayerReading::target_logit);
  result.target_probability = stacked(readings, &LayerReading::target_probability);
  result.target_rank = stacked(readings, &LayerReading::target_rank);
  result.logits = stacked(readings, &LayerReading::all);
  return result;
}

}  // namespace glassformer
