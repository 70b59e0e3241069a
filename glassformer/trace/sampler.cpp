#include "glassformer/trace/sampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/graph/node.h"

namespace glassformer {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

at::Tensor indices(const std::vector<int64_t>& text, const at::Tensor& logits) {
  return at::tensor(text, at::TensorOptions(at::kLong)).to(logits.device());
}

void penalise_repetition(at::Tensor& logits, std::span<const std::vector<int64_t>> texts, double penalty) {
  if (penalty == 1.0) return;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) continue;
    at::Tensor row = logits[static_cast<int64_t>(i)];
    const at::Tensor seen = indices(texts[i], logits), scores = row.index_select(0, seen);
    row.index_copy_(0, seen, at::where(scores < 0, scores * penalty, scores / penalty));
  }
}

void penalise_frequency(at::Tensor& logits, std::span<const std::vector<int64_t>> texts, double penalty) {
  if (penalty == 0.0) return;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) continue;
    const at::Tensor counts = indices(texts[i], logits).bincount({}, logits.size(1)).to(at::kFloat);
    at::Tensor row = logits[static_cast<int64_t>(i)];
    row.copy_(row - counts * penalty);  // In float32 at least, whatever the logits are.
  }
}

void keep_top_k(at::Tensor& logits, int64_t k) {
  if (k <= 0 || k >= logits.size(1)) return;
  const at::Tensor lowest = std::get<0>(at::topk(logits, k)).narrow(1, k - 1, 1);
  logits.masked_fill_(logits < lowest, kNever);
}

// transformers sorts upwards and drops the tail whose probability is at most 1 - p.
void keep_top_p(at::Tensor& logits, double p) {
  if (p >= 1.0) return;
  const auto [sorted, order] = at::sort(logits, -1, false);
  at::Tensor dropped = at::softmax(sorted, -1).cumsum(-1) <= 1 - p;
  dropped.narrow(1, dropped.size(1) - 1, 1).fill_(false);
  logits.masked_fill_(dropped.scatter(1, order, dropped), kNever);
}

// TransformerLens sorts downwards and keeps up to the first token that takes the sum beyond p.
void keep_top_p_downwards(at::Tensor& logits, double p) {
  if (p >= 1.0) return;
  const auto [sorted, order] = at::sort(logits, -1, true);
  const at::Tensor beyond = at::softmax(sorted, -1).cumsum(-1) > p;
  at::Tensor dropped = beyond.roll(1, 1);
  dropped.narrow(1, 0, 1).fill_(false);
  logits.masked_fill_(dropped.scatter(1, order, dropped), kNever);
}

void keep_min_p(at::Tensor& logits, double p) {
  if (p <= 0.0) return;
  const at::Tensor probabilities = at::softmax(logits, -1);
  logits.masked_fill_(probabilities < probabilities.amax(-1, true) * p, kNever);
}

void apply_rules(at::Tensor& scores, std::span<const std::vector<int64_t>> texts, const SamplerOptions& options) {
  const bool lens = options.order == SamplerOrder::kTransformerLens;
  penalise_repetition(scores, texts, options.repetition_penalty);
  if (!lens) penalise_frequency(scores, texts, options.frequency_penalty);
  if (!options.sample) return;
  if (options.temperature != 1.0) scores.div_(options.temperature);
  if (lens) penalise_frequency(scores, texts, options.frequency_penalty);
  keep_top_k(scores, options.top_k);
  if (!lens)
    keep_top_p(scores, options.top_p);
  else if (options.top_k <= 0)
    keep_top_p_downwards(scores, options.top_p);
  keep_min_p(scores, options.min_p);
}

}  // namespace

void check_sampler(const SamplerOptions& options) {
  const auto require = [](bool right, const char* what, double value, const char* expected) {
    if (!right) throw InputError(str(what, " is ", value, "; expected ", expected));
  };
  require(options.temperature >= 0, "temperature", options.temperature, "0 or more");
  require(options.top_k >= 0, "top_k", static_cast<double>(options.top_k), "0 (all) or more");
  require(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "more than 0, at most 1");
  require(options.min_p >= 0 && options.min_p <= 1, "min_p", options.min_p, "a number from 0 to 1");
  require(options.repetition_penalty > 0, "repetition_penalty", options.repetition_penalty, "more than 0");
}

at::Tensor sample(const at::Tensor& logits, std::span<const std::vector<int64_t>> texts, const SamplerOptions& options,
                  const at::Generator* generator) {
  const at::NoGradGuard without_graph;
  if (!logits.is_floating_point() || logits.dim() == 0 || logits.size(-1) == 0)
    throw InputError(str("logits of shape ", shape_text(logits.sizes()), " and type ",
                         c10::toString(logits.scalar_type()), "; expected … d_vocab, floating point"));
  SamplerOptions rules = options;
  if (rules.temperature == 0.0) rules.sample = false;
  // transformers goes over to float32 before the rules; TransformerLens before the draw.
  const bool lens = rules.order == SamplerOrder::kTransformerLens;
  at::Tensor scores = logits.to(lens ? logits.scalar_type() : at::kFloat, false, true).reshape({-1, logits.size(-1)});
  if (!texts.empty() && static_cast<int64_t>(texts.size()) != scores.size(0))
    throw InputError(
        str(texts.size(), " texts for ", scores.size(0), " rows of logits; expected one for each, or none"));
  const auto leading = logits.sizes().slice(0, logits.dim() - 1);
  apply_rules(scores, texts, rules);
  if (!rules.sample) return at::argmax(scores, -1).view(leading);
  return at::multinomial(at::softmax(scores.to(at::kFloat), -1), 1, false,
                         generator == nullptr ? std::nullopt : std::optional(*generator))
      .view(leading);
}

}  // namespace glassformer
