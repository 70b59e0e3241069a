#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/session.h"
#include "glassformer/analysis/attribution.h"
#include "glassformer/analysis/explain.h"
#include "glassformer/base/errors.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

struct Heads {
  std::shared_ptr<const Model> model;
  Prompt prompt;
  TokenScore answer;
  std::vector<HeadPattern> list;
};

void check(const AttentionArguments& arguments, const ModelConfig& config) {
  if (arguments.layer) checked_index(*arguments.layer, config.n_layers, "layer");
  if (arguments.head) checked_index(*arguments.head, config.n_heads, "head");
}

// The heads that were asked for, or the strongest ones.
void choose(std::vector<HeadPattern>& heads, const AttentionArguments& arguments, const ModelConfig& config) {
  if (!arguments.layer) {
    std::stable_sort(heads.begin(), heads.end(),
                     [](const HeadPattern& a, const HeadPattern& b) { return std::abs(a.logit) > std::abs(b.logit); });
    heads.resize(std::min(heads.size(), static_cast<size_t>(arguments.count)));
    return;
  }
  const int64_t layer = checked_index(*arguments.layer, config.n_layers, "layer");
  std::erase_if(heads, [&](const HeadPattern& head) { return head.layer != layer; });
  if (!arguments.head) return;
  const int64_t number = checked_index(*arguments.head, config.n_heads, "head");
  std::erase_if(heads, [&](const HeadPattern& head) { return head.head != number; });
}

Heads read(const AttentionArguments& arguments) {
  Progress progress;
  progress.show("opening the model");
  Heads heads{load(arguments), {}, {}, {}};
  const ModelConfig& config = heads.model->config();
  check(arguments, config);
  heads.prompt = describe_prompt(*heads.model, arguments.prompt);
  Trace trace(heads.model, arguments.prompt);
  compute_blocks(trace, progress.part("reading the prompt", 0, 60));
  heads.answer = best_tokens(*heads.model, trace.logits_at(-1)[0], 1).front();
  const auto shares = matrix_of(direct_logit_attribution(trace, heads.answer.id).heads.squeeze(-1));
  for (size_t layer = 0; layer < shares.size(); ++layer) {
    for (size_t head = 0; head < shares[layer].size(); ++head) {
      heads.list.push_back({static_cast<int64_t>(layer), static_cast<int64_t>(head), shares[layer][head], {}});
    }
  }
  choose(heads.list, arguments, config);
  const auto patterns = progress.part("attention", 60, 100);
  int64_t done = 0;
  for (HeadPattern& head : heads.list) {
    if (patterns) patterns(done++, static_cast<int64_t>(heads.list.size()));
    head.pattern = matrix_of(trace.read(str("blocks.", head.layer, ".attn.hook_pattern"))[0][head.head]);
  }
  return heads;
}

Json report(const Heads& heads) {
  Json list = Json::array();
  for (const HeadPattern& head : heads.list) {
    list.push_back({{"layer", head.layer}, {"head", head.head}, {"logit", head.logit}, {"pattern", head.pattern}});
  }
  return {{"model", heads.model->name()},
          {"prompt", json_of(heads.prompt)},
          {"answer", json_of(heads.answer)},
          {"heads", std::move(list)}};
}

// "0 The 83 %, 3 of 9.1 %": the keys with most of the attention.
std::string looks(const std::vector<double>& weights, const std::vector<std::string>& tokens) {
  constexpr size_t kKeys = 4;
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  std::string text;
  for (size_t i = 0; i < std::min(order.size(), kKeys); ++i) {
    const size_t key = order[i];
    text += (text.empty() ? "" : ", ") + str(key, " ", shortened(visible(tokens[key]), 12), " ", percent(weights[key]));
  }
  return text;
}

void print_list(const Heads& heads) {
  print(bold("Where the heads look from the last position") + "\n");
  print("logit: what the head adds to the logit of the model's answer, " + in_quotes(heads.answer.token) + "\n\n");
  Table table({{"head"}, {"logit", Align::kRight}, {"attention", Align::kLeft, screen().width - 17}});
  for (const HeadPattern& head : heads.list) {
    table.add({str(head.layer, ".", head.head), signed_number(head.logit, 3),
               looks(head.pattern.back(), heads.prompt.tokens)});
  }
  print(table.text());
}

std::string hundredths(double weight) {
  return std::isfinite(weight) ? std::to_string(std::lround(weight * 100)) : "n/a";
}

// Rows are queries, columns keys: numbers where they fit, else one shade for each key.
std::string pattern_table(const HeadPattern& head, const std::vector<std::string>& tokens) {
  constexpr int kLabel = 18, kNumber = 5;
  const size_t count = head.pattern.size();
  const bool numbers = count <= columns_that_fit(kLabel + 4, kNumber);
  const size_t room = numbers ? count : static_cast<size_t>(screen().width - kLabel - 8);
  const size_t first = count > room ? count - room : 0;
  std::vector<Column> columns = {{"query", Align::kRight}, {"", Align::kLeft, kLabel - 4}};
  for (size_t key = 0; key < count && numbers; ++key) columns.push_back({str(key, " "), Align::kRight});
  if (!numbers) columns.push_back({str("keys ", first, " to ", count - 1)});
  Table table(std::move(columns));
  for (size_t query = 0; query < count; ++query) {
    std::vector<std::string> row = {std::to_string(query), visible(tokens[query])};
    std::string shades;
    for (size_t key = first; key <= query; ++key) {
      const double weight = head.pattern[query][key];
      if (numbers)
        row.push_back(heat_cell(weight, hundredths(weight)));
      else
        shades += heat(weight, shade(weight), screen().colour);
    }
    if (!numbers) row.push_back(shades);
    table.add(std::move(row));
  }
  return table.text();
}

void print_head(const Heads& heads) {
  const HeadPattern& head = heads.list.front();
  print(bold(str("Attention of head ", head.layer, ".", head.head, ", in hundredths: queries down, keys across")) +
        "\n");
  print(pattern_table(head, heads.prompt.tokens));
  print("From the last position: " + looks(head.pattern.back(), heads.prompt.tokens) + "\n");
  print("It adds " + signed_number(head.logit, 3) + " to the logit of the model's answer, " +
        in_quotes(heads.answer.token) + ".\n");
}

}  // namespace

int run(const AttentionArguments& arguments) {
  const Heads heads = read(arguments);
  if (arguments.json) {
    print_json(report(heads));
  } else if (arguments.head) {
    print_head(heads);
  } else {
    print_list(heads);
  }
  return kSuccess;
}

}  // namespace glassformer::cli
