#include "glassformer/analysis/lens.h"

#include <functional>
#include <numeric>

#include "cli/session.h"
#include "glassformer/analysis/explain.h"
#include "glassformer/base/errors.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

constexpr int kTokenWidth = 9;

struct Reading {
  std::shared_ptr<const Model> model;
  Prompt prompt;
  std::vector<int64_t> positions;
  std::optional<int64_t> target;
  LensResult found;

  TokenScore top(size_t layer, size_t pos, int64_t k) const {
    const auto at = [&](const at::Tensor& values) {
      return values[static_cast<int64_t>(layer)][0][static_cast<int64_t>(pos)][k];
    };
    const auto id = at(found.top_ids).item<int64_t>();
    return {id, token_text(*model, id), at(found.top_logits).item<double>(),
            at(found.top_probabilities).item<double>()};
  }
  double target_at(const at::Tensor& values, size_t layer, size_t pos) const {
    return values[static_cast<int64_t>(layer)][0][static_cast<int64_t>(pos)].item<double>();
  }
  int64_t n_top() const { return found.top_ids.size(3); }
};

Reading read(const LensArguments& arguments) {
  Progress progress;
  progress.show("opening the model");
  Reading reading{load(arguments), {}, {}, std::nullopt, {}};
  reading.prompt = describe_prompt(*reading.model, arguments.prompt);
  if (arguments.target) reading.target = single_token(*reading.model, *arguments.target, "--target");
  Trace trace(reading.model, arguments.prompt);
  for (const int64_t position : arguments.positions) {
    reading.positions.push_back(checked_index(position, trace.length(), "position"));
  }
  if (arguments.positions.empty() && arguments.top_k > 1) reading.positions = {trace.length() - 1};
  if (reading.positions.empty()) {
    reading.positions.resize(static_cast<size_t>(trace.length()));
    std::iota(reading.positions.begin(), reading.positions.end(), int64_t{0});
  }
  LensOptions options;
  options.positions = reading.positions;
  options.top_k = arguments.top_k;
  options.target = reading.target;
  options.progress = progress.part("logit lens", 0, 100);
  reading.found = logit_lens(trace, options);
  return reading;
}

Json report(const Reading& reading) {
  Json top = Json::array(), ranks = Json::array(), probabilities = Json::array(), logits = Json::array();
  for (size_t layer = 0; layer < reading.found.layers.size(); ++layer) {
    Json row = Json::array();
    for (size_t pos = 0; pos < reading.positions.size(); ++pos) {
      Json scores = Json::array();
      for (int64_t k = 0; k < reading.n_top(); ++k) scores.push_back(json_of(reading.top(layer, pos, k)));
      row.push_back(std::move(scores));
    }
    top.push_back(std::move(row));
    if (!reading.target) continue;
    const auto index = static_cast<int64_t>(layer);
    probabilities.push_back(row_of(reading.found.target_probability[index][0]));
    logits.push_back(row_of(reading.found.target_logit[index][0]));
    Json layer_ranks = Json::array();
    for (const double rank : row_of(reading.found.target_rank[index][0]))
      layer_ranks.push_back(static_cast<int64_t>(rank));
    ranks.push_back(std::move(layer_ranks));
  }
  Json json = {{"model", reading.model->name()}, {"prompt", json_of(reading.prompt)},
               {"positions", reading.positions}, {"layers", reading.found.layers},
               {"top", std::move(top)},          {"target", nullptr}};
  if (reading.target) {
    json["target"] = {{"id", *reading.target},
                      {"token", token_text(*reading.model, *reading.target)},
                      {"logit", std::move(logits)},
                      {"probability", std::move(probabilities)},
                      {"rank", std::move(ranks)}};
  }
  return json;
}

// A table of layers by positions, the last ones that fit.
std::string grid(const Reading& reading, const std::function<std::string(size_t layer, size_t pos)>& cell) {
  const size_t count = reading.positions.size(), room = columns_that_fit(6, kTokenWidth + 2);
  const size_t first = count > room ? count - room : 0;
  std::vector<Column> columns = {{"after\nblock", Align::kRight}};
  for (size_t pos = first; pos < count; ++pos) {
    const auto position = static_cast<size_t>(reading.positions[pos]);
    columns.push_back({str("  ", position, "\n  ", shortened(visible(reading.prompt.tokens[position]), kTokenWidth))});
  }
  Table table(std::move(columns));
  for (size_t layer = 0; layer < reading.found.layers.size(); ++layer) {
    std::vector<std::string> row = {reading.found.layers[layer]};
    for (size_t pos = first; pos < count; ++pos) row.push_back(cell(layer, pos));
    table.add(std::move(row));
  }
  std::string text = table.text();
  if (first > 0)
    text += str("Shown are the last ", count - first, " of ", count, " positions; --position chooses others.\n");
  return text;
}

void print_grids(const Reading& reading) {
  print(bold("The most likely next token after each block (darker: likelier)") + "\n");
  print(grid(reading, [&](size_t layer, size_t pos) {
    const TokenScore score = reading.top(layer, pos, 0);
    return heat_cell(score.probability, shortened(visible(score.token), kTokenWidth));
  }));
  if (!reading.target) return;
  const std::string target = in_quotes(token_text(*reading.model, *reading.target));
  print("\n" + bold("The rank of " + target + " (0: the most likely token; darker: likelier)") + "\n");
  print(grid(reading, [&](size_t layer, size_t pos) {
    const double rank = reading.target_at(reading.found.target_rank, layer, pos);
    return heat_cell(reading.target_at(reading.found.target_probability, layer, pos),
                     grouped(static_cast<int64_t>(rank)));
  }));
}

// One position: the most likely tokens with their probabilities, and the target.
void print_position(const Reading& reading, size_t pos) {
  const auto position = static_cast<size_t>(reading.positions[pos]);
  print(bold(str("Position ", position, ", after ", in_quotes(reading.prompt.tokens[position]))) + "\n");
  std::vector<Column> columns = {{"after\nblock", Align::kRight}};
  const size_t room = columns_that_fit(reading.target ? 30 : 8, 20);
  const auto shown = std::min<int64_t>(reading.n_top(), static_cast<int64_t>(room));
  if (reading.target) {
    columns.push_back({in_quotes(token_text(*reading.model, *reading.target)) + "\nprobability", Align::kRight, 14});
    columns.push_back({"\nrank", Align::kRight});
  }
  for (int64_t k = 0; k < shown; ++k) {
    columns.push_back({k == 0 ? "\n1." : str("\n", k + 1, "."), Align::kLeft, 10});
    columns.push_back({"", Align::kRight});
  }
  Table table(std::move(columns));
  for (size_t layer = 0; layer < reading.found.layers.size(); ++layer) {
    std::vector<std::string> row = {reading.found.layers[layer]};
    if (reading.target) {
      row.push_back(percent(reading.target_at(reading.found.target_probability, layer, pos)));
      row.push_back(grouped(static_cast<int64_t>(reading.target_at(reading.found.target_rank, layer, pos))));
    }
    for (int64_t k = 0; k < shown; ++k) {
      const TokenScore score = reading.top(layer, pos, k);
      row.push_back(visible(score.token));
      row.push_back(percent(score.probability));
    }
    table.add(std::move(row));
  }
  print(table.text());
  if (shown < reading.n_top())
    print(str("Shown are the first ", shown, " of ", reading.n_top(), " tokens; --json has all.\n"));
}

}  // namespace

int run(const LensArguments& arguments) {
  const Reading reading = read(arguments);
  if (arguments.json) {
    print_json(report(reading));
  } else if (arguments.positions.empty() && arguments.top_k == 1) {
    print_grids(reading);
  } else {
    for (size_t pos = 0; pos < reading.positions.size(); ++pos) {
      if (pos > 0) print("\n");
      print_position(reading, pos);
    }
  }
  return kSuccess;
}

}  // namespace glassformer::cli
