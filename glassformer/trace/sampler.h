#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <vector>

namespace glassformer {

/// The order in which a sampler's rules change the logits.
enum class SamplerOrder {
  kTransformers,    // repetition penalty, frequency penalty, temperature, top_k, top_p, min_p; as in transformers.
  kTransformerLens  // repetition penalty, temperature, frequency penalty, then top_k, or top_p if there is no top_k.
};

struct SamplerOptions {
  bool sample = false;              // Draw at random; otherwise take the most likely token.
  double temperature = 1.0;         // Divides the logits; 0 takes the most likely token.
  int64_t top_k = 0;                // Only the k most likely; 0: all.
  double top_p = 1.0;               // Only the most likely that make up this probability.
  double min_p = 0.0;               // Only those with at least this share of the top probability.
  double frequency_penalty = 0.0;   // Taken from a token's logit for each time it stands in the text so far.
  double repetition_penalty = 1.0;  // Divides positive logits (multiplies negative ones) of tokens in the text so far.
  SamplerOrder order = SamplerOrder::kTransformers;
};

/// Raises `InputError` for values outside their range.
void check_sampler(const SamplerOptions& options);

/// The next token of each sequence from logits `… d_vocab`, `batch d_vocab` as a rule: `…`, int64. `texts` holds each
/// sequence's tokens so far; without any, nothing is penalised. `InputError` where there are more or fewer texts. Draws
/// come from `generator`, or from torch's own where it is missing, one call of multinomial for the whole batch: the
/// same seed gives the same tokens as transformers, or TransformerLens with its order.
at::Tensor sample(const at::Tensor& logits, std::span<const std::vector<int64_t>> texts, const SamplerOptions& options,
                  const at::Generator* generator = nullptr);

}  // namespace glassformer
