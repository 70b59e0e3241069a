#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/session.h"
#include "glassformer/analysis/explain.h"
#include "glassformer/analysis/patching.h"
#include "glassformer/base/errors.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

struct Sweep {
  std::shared_ptr<const Model> model;
  Prompt clean, corrupted;
  std::string activation;
  std::vector<int64_t> layers;
  int64_t answer = 0, versus = 0;
  PatchResult found;
  at::Tensor recovered;  // Axes as in `found`, float64.
};

int64_t answer_of(Trace& trace, const std::optional<std::string>& given, const char* option) {
  if (given) return single_token(trace.model(), *given, option);
  return best_tokens(trace.model(), trace.logits_at(-1)[0], 1).front().id;
}

std::vector<int64_t> layers_of(const PatchArguments& arguments, int64_t n_layers) {
  std::vector<int64_t> layers;
  for (const int64_t layer : arguments.layers) layers.push_back(checked_index(layer, n_layers, "layer"));
  if (!layers.empty()) return layers;
  layers.resize(static_cast<size_t>(n_layers));
  std::iota(layers.begin(), layers.end(), int64_t{0});
  return layers;
}

Sweep sweep(const PatchArguments& arguments) {
  Progress progress;
  progress.show("opening the model");
  Sweep made{load(arguments), {}, {}, arguments.activation, {}, 0, 0, {}, {}};
  made.layers = layers_of(arguments, made.model->config().n_layers);
  made.clean = describe_prompt(*made.model, arguments.clean);
  made.corrupted = describe_prompt(*made.model, arguments.corrupted);
  Trace clean(made.model, arguments.clean), corrupted(made.model, arguments.corrupted);
  compute_blocks(clean, progress.part("reading the clean prompt", 0, 5));
  compute_blocks(corrupted, progress.part("reading the corrupted prompt", 5, 10));
  made.answer = answer_of(clean, arguments.answer, "--answer");
  made.versus = answer_of(corrupted, arguments.versus, "--versus");
  if (made.answer == made.versus) {
    throw InputError(str("answer and versus are the same token, ", in_quotes(token_text(*made.model, made.answer)),
                         "; choose two with --answer and --versus"));
  }
  PatchOptions options;
  options.activation = arguments.activation;
  options.by_position = !arguments.no_position;
  options.by_head = arguments.by_head;
  options.layers = made.layers;
  options.progress = progress.part("patching", 10, 100);
  made.found = activation_patching(clean, corrupted, logit_difference(made.answer, made.versus), options);
  made.recovered = made.found.recovered();
  return made;
}

Json nested(const at::Tensor& values) {
  if (values.dim() == 1) return row_of(values);
  Json list = Json::array();
  for (int64_t i = 0; i < values.size(0); ++i) list.push_back(nested(values[i]));
  return list;
}

Json report(const Sweep& made) {
  const auto token = [&](int64_t id) { return Json{{"id", id}, {"token", token_text(*made.model, id)}}; };
  return {{"model", made.model->name()},
          {"clean", json_of(made.clean)},
          {"corrupted", json_of(made.corrupted)},
          {"activation", made.activation},
          {"answer", token(made.answer)},
          {"versus", token(made.versus)},
          {"clean_difference", made.found.clean},
          {"corrupted_difference", made.found.corrupted},
          {"axes", made.found.axes},
          {"layers", made.layers},
          {"difference", nested(made.found.values)},
          {"recovered", nested(made.recovered)}};
}

std::string column_header(const Sweep& made, size_t column) {
  if (made.found.axes[1] == "head") return str("head\n", column);
  const std::string clean = made.clean.tokens[column], corrupted = made.corrupted.tokens[column];
  return str(column, " ", visible(clean), "\n", clean == corrupted ? "" : "not " + visible(corrupted));
}

// The columns where a patch does most, as many as fit, in order.
std::vector<size_t> strongest_columns(const std::vector<std::vector<double>>& values, size_t room) {
  std::vector<double> size(values.front().size(), 0);
  for (const auto& row : values) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (std::isfinite(row[i])) size[i] = std::max(size[i], std::abs(row[i]));
    }
  }
  std::vector<size_t> order(size.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return size[a] > size[b]; });
  order.resize(std::min(order.size(), room));
  std::sort(order.begin(), order.end());
  return order;
}

std::string map_of(const Sweep& made) {
  const bool by_head = made.found.axes[1] == "head";
  const int width = by_head ? 8 : 11;
  const std::vector<std::vector<double>> values = matrix_of(made.recovered);
  const std::vector<size_t> shown = strongest_columns(values, columns_that_fit(7, width));
  std::vector<Column> columns = {{"block", Align::kRight}};
  for (const size_t column : shown) columns.push_back({column_header(made, column), Align::kRight, width});
  Table table(std::move(columns));
  for (size_t layer = 0; layer < values.size(); ++layer) {
    std::vector<std::string> row = {std::to_string(made.layers[layer])};
    for (const size_t column : shown)
      row.push_back(heat_cell(values[layer][column], signed_number(values[layer][column])));
    table.add(std::move(row));
  }
  std::string text = table.text();
  const size_t count = values.front().size();
  if (shown.size() < count) {
    text += str("Shown are the ", shown.size(), " of ", count, by_head ? " heads" : " positions",
                " where a patch does most.\n");
  }
  return text;
}

std::string layer_list(const Sweep& made) {
  constexpr int kBar = 24;
  Table table({{"block", Align::kRight}, {"recovered", Align::kRight}, {""}});
  const std::vector<double> values = row_of(made.recovered);
  for (size_t layer = 0; layer < values.size(); ++layer) {
    table.add({std::to_string(made.layers[layer]), signed_number(values[layer]), bar(values[layer], 1, kBar)});
  }
  return table.text();
}

// Layer, position and head: too many for a map, so the strongest.
std::string strongest_places(const Sweep& made) {
  constexpr size_t kMost = 20;
  const std::vector<double> values = row_of(made.recovered.reshape({-1}));
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto size = [&](size_t i) { return std::isfinite(values[i]) ? std::abs(values[i]) : -1; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return size(a) > size(b); });
  order.resize(std::min(order.size(), kMost));
  const auto n_pos = static_cast<size_t>(made.recovered.size(1)), n_heads = static_cast<size_t>(made.recovered.size(2));
  Table table({{"head"}, {"position"}, {"", Align::kLeft, 18}, {"recovered", Align::kRight}, {""}});
  for (const size_t i : order) {
    const size_t head = i % n_heads, pos = i / n_heads % n_pos, layer = i / n_heads / n_pos;
    table.add({str(made.layers[layer], ".", head), std::to_string(pos), visible(made.clean.tokens[pos]),
               signed_number(values[i]), bar(values[i], 1, 12)});
  }
  return table.text() +
         str("Shown are the ", order.size(), " strongest of ", values.size(), " places; --json has all.\n");
}

void print_sweep(const Sweep& made) {
  const std::string answer = in_quotes(token_text(*made.model, made.answer));
  const std::string versus = in_quotes(token_text(*made.model, made.versus));
  print(bold("Patching " + made.activation + " from the clean prompt into the corrupted one") + "\n");
  print(wrapped("Measured is logit(" + answer + ") - logit(" + versus + "): " + signed_number(made.found.clean) +
                    " in the clean run, " + signed_number(made.found.corrupted) +
                    " in the corrupted one. 0: a patch does nothing; 1: it restores the clean run.",
                screen().width));
  print("\n");
  if (made.found.axes.size() == 1) print(layer_list(made));
  if (made.found.axes.size() == 2) print(map_of(made));
  if (made.found.axes.size() == 3) print(strongest_places(made));
}

}  // namespace

int run(const PatchArguments& arguments) {
  const Sweep made = sweep(arguments);
  if (arguments.json) {
    print_json(report(made));
  } else {
    print_sweep(made);
  }
  return kSuccess;
}

}  // namespace glassformer::cli
