#pragma once
// Made-up explanations for the tests of the page, the terminal's tables and the JSON: numbers are even and of no
// meaning, but agree with each other as a real explanation's do.

#include <cmath>
#include <string>
#include <vector>

#include "glassformer/analysis/explanation.h"

namespace glassformer {

struct SampleShape {
  int64_t layers = 2, heads = 3;
  std::vector<std::string> tokens = {"The", " capital", " of", " France", " is"};
  std::vector<std::string> versus_tokens;  // Empty: no second prompt.
  std::string answer = " Paris";
};

inline Prompt sample_prompt(const std::vector<std::string>& tokens) {
  Prompt prompt;
  for (const std::string& token : tokens) {
    prompt.text += token;
    prompt.ids.push_back(100 + static_cast<int64_t>(prompt.ids.size()));
    prompt.tokens.push_back(token);
  }
  return prompt;
}

inline LensTable sample_lens(const SampleShape& shape, const TokenScore& answer) {
  LensTable lens;
  for (int64_t layer = 0; layer <= shape.layers; ++layer) {
    lens.layers.push_back(layer == 0 ? "embed" : std::to_string(layer - 1));
    const double done = static_cast<double>(layer) / static_cast<double>(shape.layers);
    std::vector<TokenScore> top;
    std::vector<double> probability;
    std::vector<int64_t> rank;
    for (size_t position = 0; position < shape.tokens.size(); ++position) {
      const bool answers = layer == shape.layers && position + 1 == shape.tokens.size();
      top.push_back(answers ? answer : TokenScore{100 + layer, shape.tokens[position], 3.5, 0.25});
      probability.push_back(answers ? answer.probability : 0.125 * done);
      rank.push_back(answers ? 0 : std::lround(std::pow(40000.0, 1 - done)));
    }
    lens.top.push_back(top);
    lens.probability.push_back(probability);
    lens.rank.push_back(rank);
  }
  return lens;
}

inline AttributionTable sample_attribution(const SampleShape& shape, TokenScore& answer) {
  AttributionTable attribution;
  attribution.components.push_back({"embed", "embed", -1, 0.5});
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<double> heads;
    double sum = 0;
    for (int64_t head = 0; head < shape.heads; ++head) {
      heads.push_back((head % 2 == 0 ? 1 : -0.75) * 0.25 * static_cast<double>(layer + head));
      sum += heads.back();
    }
    attribution.heads.push_back(heads);
    const std::string name = std::to_string(layer);
    attribution.components.push_back({name + ".attn", "attn", layer, sum});
    attribution.components.push_back({name + ".mlp", "mlp", layer, layer % 4 == 0 ? -1.25 : 0.375});
  }
  for (const Component& component : attribution.components) attribution.sum += component.logit;
  answer.logit = attribution.sum;
  attribution.answer = answer;
  return attribution;
}

inline HeadPattern sample_pattern(int64_t layer, int64_t head, double logit, size_t n_tokens) {
  HeadPattern result{layer, head, logit, {}};
  for (size_t query = 0; query < n_tokens; ++query) {
    std::vector<double> row(n_tokens, 0);
    for (size_t key = 0; key <= query; ++key) row[key] = 1.0 / static_cast<double>(query + 1);
    result.pattern.push_back(row);
  }
  return result;
}

inline PatchTable sample_patching(const SampleShape& shape, const TokenScore& answer) {
  PatchTable patching;
  patching.answer = answer;
  patching.versus_answer = {300, " Rome", 9.5, 0.375};
  patching.clean_difference = 4.5;
  patching.corrupted_difference = -3.25;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    patching.layers.push_back(std::to_string(layer));
    std::vector<double> row;
    for (size_t position = 0; position < shape.tokens.size(); ++position) {
      const bool differs = shape.tokens[position] != shape.versus_tokens[position];
      const bool is_last = position + 1 == shape.tokens.size();
      const bool late = 2 * layer >= shape.layers;
      row.push_back(differs && !late ? 1.0625 : is_last && late ? 0.9375 : differs ? -0.0625 : 0);
    }
    patching.recovered.push_back(row);
  }
  return patching;
}

/// An explanation of the given shape; the answer stands at the last position.
inline Explanation sample_explanation(const SampleShape& shape = {}) {
  Explanation result;
  result.model = {"toy-" + std::to_string(shape.layers) + "l",
                  "llama",
                  "float32",
                  shape.layers,
                  shape.heads,
                  1,
                  48,
                  16,
                  96,
                  49152,
                  512,
                  1234567};
  result.prompt = sample_prompt(shape.tokens);
  TokenScore answer{200, shape.answer, 0, 0.8325};
  result.attribution = sample_attribution(shape, answer);
  result.next_tokens = {answer, {201, " the", answer.logit - 2.5, 0.0625}, {202, "\n", answer.logit - 9, 0.00003}};
  result.lens = sample_lens(shape, answer);
  const int64_t last = shape.layers - 1;
  result.heads = {sample_pattern(last, shape.heads - 1, result.attribution.heads.back().back(), shape.tokens.size())};
  if (!shape.versus_tokens.empty()) {
    result.versus = sample_prompt(shape.versus_tokens);
    result.patching = sample_patching(shape, answer);
    result.versus_next_tokens = {result.patching->versus_answer, {201, " the", 7.25, 0.25}};
  }
  return result;
}

/// Tokens that try to break out of the page, the terminal or the JSON.
inline std::vector<std::string> hostile_tokens() {
  return {"</script><script>alert(1)</script>",
          "<!--<script>",
          "{{script}}",
          "\"'&<b>",
          "a\nb\r\tc",
          "\x1b[31mred\x07",
          "\xE2\x80\xAEright",         // U+202E turns the direction of text.
          "\xE2\x80\x8B\xEF\xBB\xBF",  // A space of no width, a byte order mark.
          "\xE4\xBD",                  // Half of a Chinese character.
          "東京",
          " مرحبا",
          "\xE0\xA4\xBF",  // A Devanagari vowel without its letter.
          "👩‍🚀",
          "",
          std::string("nul\0!", 5),
          "                                                  "};
}

}  // namespace glassformer
