#include "glassformer/analysis/explain.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>

#include <algorithm>

#include "glassformer/analysis/attribution.h"
#include "glassformer/analysis/lens.h"
#include "glassformer/analysis/patching.h"
#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer {
namespace {

std::string token_text(const Model& model, int64_t id) { return model.tokenizer().decode(std::vector<int64_t>{id}); }

std::vector<double> row(const at::Tensor& values) {
  const at::Tensor doubles = values.to(at::kCPU, at::kDouble).contiguous();
  return {doubles.const_data_ptr<double>(), doubles.const_data_ptr<double>() + doubles.numel()};
}

std::vector<std::vector<double>> matrix(const at::Tensor& values) {
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < values.size(0); ++i) rows.push_back(row(values[i]));
  return rows;
}

AttributionTable attribution_table(Trace& trace, const TokenScore& answer) {
  const AttributionResult found = direct_logit_attribution(trace, answer.id);
  AttributionTable table;
  table.answer = answer;
  for (const Contribution& part : found.components) {
    table.components.push_back({part.name, part.kind, part.layer, part.logit.item<double>()});
    table.sum += table.components.back().logit;
  }
  table.heads = matrix(found.heads.squeeze(-1));
  return table;
}

std::vector<HeadPattern> strongest_heads(Trace& trace, const AttributionTable& attribution, int64_t count) {
  std::vector<HeadPattern> heads;
  for (size_t layer = 0; layer < attribution.heads.size(); ++layer)
    for (size_t head = 0; head < attribution.heads[layer].size(); ++head)
      heads.push_back({static_cast<int64_t>(layer), static_cast<int64_t>(head), attribution.heads[layer][head], {}});
  std::stable_sort(heads.begin(), heads.end(),
                   [](const HeadPattern& a, const HeadPattern& b) { return std::abs(a.logit) > std::abs(b.logit); });
  heads.resize(std::min(heads.size(), static_cast<size_t>(std::max<int64_t>(count, 0))));
  for (HeadPattern& head : heads)
    head.pattern = matrix(trace.read(str("blocks.", head.layer, ".attn.hook_pattern"))[0][head.head]);
  return heads;
}

PatchTable patch_table(Trace& clean, Trace& corrupted, const TokenScore& answer, const TokenScore& versus_answer,
                       std::function<void(int64_t done, int64_t total)> progress) {
  PatchOptions patch;
  patch.progress = std::move(progress);
  const PatchResult found = activation_patching(clean, corrupted, logit_difference(answer.id, versus_answer.id), patch);
  PatchTable table{answer, versus_answer, found.clean, found.corrupted, {}, matrix(found.recovered())};
  for (size_t layer = 0; layer < table.recovered.size(); ++layer) table.layers.push_back(std::to_string(layer));
  return table;
}

void check_prompts(const Prompt& prompt, const Prompt& versus) {
  if (versus.ids.size() != prompt.ids.size())
    throw InputError(str("the two prompts must have equally many tokens: '", prompt.text, "' has ", prompt.ids.size(),
                         ", '", versus.text, "' has ", versus.ids.size()));
  if (versus.ids == prompt.ids)
    throw InputError(str("the two prompts have the same tokens, those of '", prompt.text,
                         "'; expected a second prompt that differs"));
}

void check_options(const ExplainOptions& options, const Model& model, bool has_versus) {
  if (options.n_next_tokens < 1)
    throw InputError(str("the number of next tokens is ", options.n_next_tokens, "; expected 1 or more"));
  for (const std::optional<int64_t>& id : {options.answer, options.versus_answer})
    if (id && (*id < 0 || *id >= model.config().d_vocab))
      throw InputError(str("token ", *id, " is outside the vocabulary of ", model.config().d_vocab));
  if (!options.versus_answer) return;
  if (!has_versus) throw InputError("a token to compare the answer with needs a second prompt; none was given");
  if (options.answer == options.versus_answer)
    throw InputError(str("'", token_text(model, *options.answer),
                         "' is both the answer and what it is compared with; expected two tokens"));
}

// What the answer is compared with: two prompts may well have the same most likely token.
TokenScore other_answer(const Model& model, const at::Tensor& logits, const TokenScore& answer,
                        const std::optional<int64_t>& given) {
  if (given == answer.id)
    throw InputError(str("'", answer.token, "' is the first prompt's own answer; choose the answer or what it is ",
                         "compared with so that they differ"));
  if (given) return score_of(model, logits, *given);
  const std::vector<TokenScore> best = best_tokens(model, logits, 2);
  return best.front().id == answer.id ? best.back() : best.front();
}

}  // namespace

std::function<void(int64_t done, int64_t total)> part_of_progress(
    const std::function<void(const std::string& what, int64_t done, int64_t total)>& progress, const std::string& what,
    int64_t from_percent, int64_t to_percent) {
  if (!progress) return {};
  progress(what, from_percent, 100);
  return [=](int64_t done, int64_t total) {
    progress(what, from_percent + (to_percent - from_percent) * done / std::max<int64_t>(total, 1), 100);
  };
}

ModelSummary summarise(const Model& model) {
  const ModelConfig& config = model.config();
  return {model.name(),    config.architecture, dtype_name(model.weights().dtype()),
          config.n_layers, config.n_heads,      config.n_kv_heads,
          config.d_model,  config.d_head,       config.d_mlp,
          config.d_vocab,  config.n_ctx,        model.weights().count()};
}

Prompt describe_prompt(const Model& model, const std::string& text) {
  Prompt prompt{text, model.tokenizer().encode(text), {}};
  if (prompt.ids.empty()) throw InputError(str("the prompt '", text, "' has no tokens; expected some text"));
  prompt.tokens = model.tokenizer().decode_each(prompt.ids);
  return prompt;
}

std::vector<TokenScore> best_tokens(const Model& model, const at::Tensor& logits, int64_t count) {
  const at::Tensor wide = logits.to(at::kCPU, at::kDouble), probabilities = at::softmax(wide, -1);
  const auto [values, ids] = at::topk(wide, std::min(count, wide.size(0)));
  std::vector<TokenScore> scores;
  for (int64_t i = 0; i < ids.size(0); ++i) {
    const auto id = ids[i].item<int64_t>();
    scores.push_back({id, token_text(model, id), values[i].item<double>(), probabilities[id].item<double>()});
  }
  return scores;
}

TokenScore score_of(const Model& model, const at::Tensor& logits, int64_t id) {
  const at::Tensor wide = logits.to(at::kCPU, at::kDouble);
  return {id, token_text(model, id), wide[id].item<double>(), at::softmax(wide, -1)[id].item<double>()};
}

void compute_blocks(Trace& trace, const std::function<void(int64_t done, int64_t total)>& progress) {
  const int64_t n_layers = trace.model().config().n_layers;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    trace.read(str("blocks.", layer, ".hook_resid_pre"));
    if (progress) progress(layer + 1, n_layers);
  }
}

LensTable lens_table(Trace& trace, int64_t answer, const std::function<void(int64_t done, int64_t total)>& progress) {
  LensOptions options;
  options.target = answer;
  options.progress = progress;
  const LensResult found = logit_lens(trace, options);
  LensTable table{found.layers, {}, {}, {}};
  for (int64_t layer = 0; layer < static_cast<int64_t>(found.layers.size()); ++layer) {
    table.probability.push_back(row(found.target_probability[layer][0]));
    std::vector<TokenScore> top;
    std::vector<int64_t> ranks;
    for (int64_t pos = 0; pos < trace.length(); ++pos) {
      const auto id = found.top_ids[layer][0][pos][0].item<int64_t>();
      top.push_back({id, token_text(trace.model(), id), found.top_logits[layer][0][pos][0].item<double>(),
                     found.top_probabilities[layer][0][pos][0].item<double>()});
      ranks.push_back(found.target_rank[layer][0][pos].item<int64_t>());
    }
    table.top.push_back(std::move(top));
    table.rank.push_back(std::move(ranks));
  }
  return table;
}

Explanation explain(const std::shared_ptr<const Model>& model, const std::string& text,
                    const std::optional<std::string>& versus, const ExplainOptions& options) {
  const at::NoGradGuard no_grad;
  // Patching takes most of the time; without it the other parts have twice as much of the whole.
  const auto part = [&](const char* what, int64_t from, int64_t to) {
    const int64_t share = versus ? 1 : 2;
    return part_of_progress(options.progress, what, share * from, share * to);
  };
  check_options(options, *model, versus.has_value());
  Explanation explanation;
  explanation.model = summarise(*model);
  explanation.prompt = describe_prompt(*model, text);
  if (versus) {
    explanation.versus = describe_prompt(*model, *versus);
    check_prompts(explanation.prompt, *explanation.versus);
  }
  TraceOptions trace_options;
  trace_options.poll = options.poll;
  Trace trace(model, text, trace_options);
  compute_blocks(trace, part("reading the prompt", 0, 10));
  const at::Tensor logits = trace.logits_at(-1)[0];
  explanation.next_tokens = best_tokens(*model, logits, options.n_next_tokens);
  const TokenScore answer =
      options.answer ? score_of(*model, logits, *options.answer) : explanation.next_tokens.front();
  explanation.lens = lens_table(trace, answer.id, part("logit lens", 10, 40));
  part("attribution", 40, 50);
  explanation.attribution = attribution_table(trace, answer);
  explanation.heads = strongest_heads(trace, explanation.attribution, options.n_heads);
  if (versus) {
    Trace other(model, *versus, trace_options);
    compute_blocks(other, part("reading the second prompt", 50, 55));
    const at::Tensor other_logits = other.logits_at(-1)[0];
    explanation.versus_next_tokens = best_tokens(*model, other_logits, options.n_next_tokens);
    const TokenScore compared = other_answer(*model, other_logits, answer, options.versus_answer);
    explanation.patching = patch_table(trace, other, answer, compared, part("patching", 55, 100));
  }
  part("done", versus ? 100 : 50, versus ? 100 : 50);
  return explanation;
}

}  // namespace glassformer
