#pragma once

#include <functional>

#include "glassformer/analysis/explanation.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

struct ExplainOptions {
  int64_t n_next_tokens = 10;
  int64_t n_heads = 6;  // Attention patterns of that many of the strongest heads.
  std::function<void(const std::string& what, int64_t done, int64_t total)> progress;
  std::function<void()> poll;
};

/// Why the model says what it says after `text`; and, with a second prompt of equal length in tokens, where the
/// difference between their answers lies. Raises `InputError` (a prompt without tokens, prompts of different lengths).
Explanation explain(const std::shared_ptr<const Model>& model, const std::string& text,
                    const std::optional<std::string>& versus = std::nullopt, const ExplainOptions& options = {});

/// The parts of an explanation that other commands show by themselves.
ModelSummary summarise(const Model& model);
Prompt describe_prompt(const Model& model, const std::string& text);
/// The `count` most likely tokens of logits `d_vocab`, best first.
std::vector<TokenScore> best_tokens(const Model& model, const at::Tensor& logits, int64_t count);
LensTable lens_table(Trace& trace, int64_t answer);

}  // namespace glassformer
