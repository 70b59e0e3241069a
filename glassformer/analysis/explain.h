#pragma once

#include <functional>

#include "glassformer/analysis/explanation.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

struct ExplainOptions {
  int64_t n_next_tokens = 10;
  int64_t n_heads = 6;  // Attention patterns of that many of the strongest heads.
  /// The token that is explained, and the one that patching compares it with, which needs a second prompt. Missing: the
  /// first prompt's most likely token, and the second prompt's most likely other one.
  std::optional<int64_t> answer, versus_answer;
  std::function<void(const std::string& what, int64_t done, int64_t total)> progress;
  std::function<void()> poll;
};

/// Why the model says what it says after `text`; and, with a second prompt of equal length in tokens, where the
/// difference between their answers lies. Raises `InputError` (a prompt without tokens, prompts of different lengths or
/// with the same tokens, an answer compared with itself).
Explanation explain(const std::shared_ptr<const Model>& model, const std::string& text,
                    const std::optional<std::string>& versus = std::nullopt, const ExplainOptions& options = {});

/// The parts of an explanation that other commands show by themselves.
ModelSummary summarise(const Model& model);
Prompt describe_prompt(const Model& model, const std::string& text);
/// The `count` most likely tokens of logits `d_vocab`, best first.
std::vector<TokenScore> best_tokens(const Model& model, const at::Tensor& logits, int64_t count);
/// One token's score among logits `d_vocab`.
TokenScore score_of(const Model& model, const at::Tensor& logits, int64_t id);
LensTable lens_table(Trace& trace, int64_t answer,
                     const std::function<void(int64_t done, int64_t total)>& progress = {});
/// For a part of some work, which has the percentages from `from_percent` to `to_percent` of the whole: reports that it
/// begins, and gives a function for how far it is; an empty one where `progress` is empty.
std::function<void(int64_t done, int64_t total)> part_of_progress(
    const std::function<void(const std::string& what, int64_t done, int64_t total)>& progress, const std::string& what,
    int64_t from_percent, int64_t to_percent);
/// Computes a trace block by block, so that one can see how far it is, and keeps the residual stream before each: what
/// is read later starts there, not at the tokens.
void compute_blocks(Trace& trace, const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace glassformer
