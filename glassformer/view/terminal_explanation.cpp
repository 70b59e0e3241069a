#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "glassformer/base/errors.h"
#include "glassformer/view/terminal.h"

namespace glassformer {
namespace {

constexpr int kMinWidth = 60, kMinBarWidth = 6, kBarWidth = 24, kTokenWidth = 18, kShortTokenWidth = 12;
constexpr int kWideEnough = 80;  // From here on tokens have their full room.
constexpr size_t kComponents = 12, kHeads = 8, kKeys = 3;

// The text as it grows, section by section.
class Page {
 public:
  explicit Page(TerminalOptions options) : colour_(options.colour), width_(std::max(options.width, kMinWidth)) {}

  void heading(const std::string& title) {
    const std::string lines = wrapped(title, width_);
    text_ += '\n' + (colour_ ? "\x1b[1m" + lines.substr(0, lines.size() - 1) + "\x1b[0m\n" : lines);
  }
  void prose(const std::string& sentence) { indented(wrapped(sentence, width_ - 2)); }
  void table(const Table& table) { text_ += table.text(2); }

  // Items one after the other, two spaces between them, in as many lines as they need.
  void flow(const std::vector<std::string>& items) {
    std::string line;
    for (const std::string& full : items) {
      const std::string item = shortened(full, width_ - 2);
      if (!line.empty() && display_width(line) + 2 + display_width(item) > width_ - 2) {
        indented(line + '\n');
        line.clear();
      }
      line += line.empty() ? item : "  " + item;
    }
    indented(line + '\n');
  }

  // The columns that a bar can have beside `others` columns of text.
  int bar_width(int others) const { return std::clamp(width_ - others, kMinBarWidth, kBarWidth); }

  std::string signed_bar(double value, double maximum, int width) const {
    std::string text = bar(value, maximum, width);
    if (!colour_ || text.empty()) return text;
    return (value < 0 ? "\x1b[38;5;39m" : "\x1b[38;5;208m") + text + "\x1b[0m";
  }

  bool colour() const { return colour_; }
  int width() const { return width_; }
  int token_width() const { return width_ < kWideEnough ? kShortTokenWidth : kTokenWidth; }
  const std::string& text() const { return text_; }

 private:
  void indented(const std::string& lines) {
    size_t start = 0;
    for (size_t end = lines.find('\n'); end != std::string::npos; end = lines.find('\n', start)) {
      text_ += "  " + lines.substr(start, end - start) + '\n';
      start = end + 1;
    }
  }

  bool colour_;
  int width_;
  std::string text_;
};

template <typename Value>
const Value* at(const std::vector<std::vector<Value>>& rows, size_t row, size_t column) {
  return row < rows.size() && column < rows[row].size() ? &rows[row][column] : nullptr;
}

double number_at(const std::vector<std::vector<double>>& rows, size_t row, size_t column) {
  const double* value = at(rows, row, column);
  return value ? *value : std::nan("");
}

// Indices of `values`, the largest size first; what is no number comes last.
std::vector<size_t> by_size(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto size = [&](size_t i) { return std::isfinite(values[i]) ? std::abs(values[i]) : -1; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return size(a) > size(b); });
  return order;
}

std::string component_words(const Component& component) {
  if (component.kind == "attn") return "attention of block " + std::to_string(component.layer);
  if (component.kind == "mlp") return "MLP of block " + std::to_string(component.layer);
  if (component.kind == "embed") return "the token's own embedding";
  if (component.kind == "bias") return "constants (biases)";
  return visible(component.name);
}

std::string model_words(const ModelSummary& model) {
  return visible(model.architecture) + ", " + std::to_string(model.n_layers) + " layers, " +
         std::to_string(model.n_heads) + " heads (" + std::to_string(model.n_kv_heads) +
         " for keys and values), d_model " + std::to_string(model.d_model) + ", " + grouped(model.n_parameters) +
         " parameters, computed in " + visible(model.dtype);
}

// What the reader may have meant: "Paris" and " Paris" are two tokens.
std::string spaced_twin(const TokenScore& answer, const std::vector<TokenScore>& next_tokens) {
  for (const TokenScore& score : next_tokens) {
    if (score.token != " " + answer.token) continue;
    return " " + in_quotes(score.token) + ", with a space before it, is another token, which has " +
           percent(score.probability) + ".";
  }
  return "";
}

void add_headline(Page& page, const Explanation& explanation) {
  const std::string model = visible(explanation.model.name);
  if (!explanation.next_tokens.empty()) {
    const TokenScore& top = explanation.next_tokens.front();
    page.heading(model + " answers " + in_quotes(top.token) + " with " + percent(top.probability));
    if (top.id != explanation.attribution.answer.id) {
      const TokenScore& answer = explanation.attribution.answer;
      page.prose("What is explained here is " + in_quotes(answer.token) + ", which has " + percent(answer.probability) +
                 "." + spaced_twin(answer, explanation.next_tokens));
    }
  } else {
    page.heading(model);
  }
  page.prose(model_words(explanation.model));
}

std::vector<std::string> numbered(const std::vector<std::string>& tokens) {
  std::vector<std::string> items;
  for (size_t i = 0; i < tokens.size(); ++i) items.push_back(std::to_string(i) + " " + visible(tokens[i]));
  return items;
}

void add_tokens(Page& page, const Explanation& explanation) {
  page.heading("The prompt as tokens (position and token; · is a space)");
  page.flow(numbered(explanation.prompt.tokens));
  if (!explanation.versus) return;
  page.heading("The second prompt");
  page.flow(numbered(explanation.versus->tokens));
}

void add_next_tokens(Page& page, const std::string& title, const std::vector<TokenScore>& scores) {
  page.heading(title);
  Table table({{"token", Align::kLeft, kTokenWidth}, {"probability", Align::kRight}, {""}, {"logit", Align::kRight}});
  const int width = page.bar_width(2 + kTokenWidth + 11 + 7 + 6);
  for (const TokenScore& score : scores) {
    table.add({visible(score.token), percent(score.probability), bar(score.probability, 1, width),
               signed_number(score.logit)});
  }
  page.table(table);
}

// How far up a rank is among all tokens, on a logarithmic scale: 1 for the top, 0 for the last.
double climbed(int64_t rank, int64_t d_vocab) {
  return 1 - std::log1p(static_cast<double>(rank)) / std::log(static_cast<double>(std::max<int64_t>(d_vocab, 2)));
}

void add_lens(Page& page, const Explanation& explanation) {
  const LensTable& lens = explanation.lens;
  if (lens.top.empty() || lens.top.front().empty()) return;
  const size_t last = lens.top.front().size() - 1;
  const std::string answer = in_quotes(explanation.attribution.answer.token);
  page.heading("Logit lens at the last position");
  page.prose("What the model would answer if it stopped after that block, and the rank that " + answer +
             " has by then (0: no token is likelier; longer bar: higher).");
  Table table({{"after\nblock", Align::kRight, 5},
               {"\ntop token", Align::kLeft, page.token_width()},
               {"its\nprob.", Align::kRight},
               {"answer's\nprob.", Align::kRight},
               {"answer's\nrank", Align::kRight},
               {""}});
  const int width = page.bar_width(2 + 5 + page.token_width() + 3 * 8 + 5 * 2);
  for (size_t layer = 0; layer < lens.layers.size(); ++layer) {
    const TokenScore* top = at(lens.top, layer, last);
    const int64_t* rank = at(lens.rank, layer, last);
    table.add({visible(lens.layers[layer]), top ? visible(top->token) : "", top ? percent(top->probability) : "n/a",
               percent(number_at(lens.probability, layer, last)), rank ? grouped(*rank) : "n/a",
               rank ? bar(climbed(*rank, explanation.model.d_vocab), 1, width) : ""});
  }
  page.table(table);
}

void add_components(Page& page, const AttributionTable& attribution) {
  const std::string answer = in_quotes(attribution.answer.token);
  page.heading("What pushes the logit of " + answer + " up (+) and down (-)");
  std::vector<double> values;
  for (const Component& component : attribution.components) values.push_back(component.logit);
  const std::vector<size_t> order = by_size(values);
  Table table({{"component", Align::kLeft, 10}, {"", Align::kLeft, 25}, {"logit", Align::kRight}, {""}});
  const int width = page.bar_width(2 + 10 + 25 + 8 + 3 * 2);
  for (size_t i = 0; i < std::min(order.size(), kComponents); ++i) {
    const Component& component = attribution.components[order[i]];
    table.add({visible(component.name), component_words(component), signed_number(component.logit, 3),
               page.signed_bar(component.logit, std::abs(values[order.front()]), width)});
  }
  page.table(table);
  const double gap = std::abs(attribution.sum - attribution.answer.logit);
  char difference[40] = "they can't be compared";
  if (std::isfinite(gap)) std::snprintf(difference, sizeof difference, "difference %.1e", gap);
  page.prose("Check: all " + std::to_string(values.size()) + " components sum to " + signed_number(attribution.sum, 4) +
             "; the model's logit is " + signed_number(attribution.answer.logit, 4) + " (" + difference + ").");
}

void add_heads(Page& page, const AttributionTable& attribution) {
  std::vector<double> values;
  std::vector<std::string> names;
  for (size_t layer = 0; layer < attribution.heads.size(); ++layer) {
    for (size_t head = 0; head < attribution.heads[layer].size(); ++head) {
      values.push_back(attribution.heads[layer][head]);
      names.push_back(std::to_string(layer) + "." + std::to_string(head));
    }
  }
  if (values.empty()) return;
  page.heading("The strongest attention heads (layer.head)");
  const std::vector<size_t> order = by_size(values);
  Table table({{"head"}, {"logit", Align::kRight}, {""}});
  for (size_t i = 0; i < std::min(order.size(), kHeads); ++i) {
    const double value = values[order[i]];
    table.add(
        {names[order[i]], signed_number(value, 3), page.signed_bar(value, std::abs(values[order.front()]), kBarWidth)});
  }
  page.table(table);
}

// The positions where a patch does anything, the strongest that fit, in the prompt's order.
std::vector<size_t> patch_positions(const PatchTable& patching, size_t n_positions, size_t room) {
  std::vector<double> strongest(n_positions, 0);
  for (const std::vector<double>& row : patching.recovered) {
    for (size_t i = 0; i < std::min(n_positions, row.size()); ++i) {
      if (std::isfinite(row[i])) strongest[i] = std::max(strongest[i], std::abs(row[i]));
    }
  }
  std::vector<size_t> positions = by_size(strongest);
  positions.resize(std::min(positions.size(), room));
  std::sort(positions.begin(), positions.end());
  return positions;
}

// The second prompt's likeliest token is what one expects the answer to be compared with; says so where it is not.
void add_compared(Page& page, const Explanation& explanation) {
  if (explanation.versus_next_tokens.empty()) return;
  const TokenScore &top = explanation.versus_next_tokens.front(), &compared = explanation.patching->versus_answer;
  if (top.id == compared.id) return;
  const bool same = top.id == explanation.patching->answer.id;
  page.prose("The second prompt is answered " + in_quotes(top.token) + (same ? " too" : "") +
             "; the comparison is with " + in_quotes(compared.token) + ", which has " + percent(compared.probability) +
             " there." + spaced_twin(compared, explanation.versus_next_tokens));
}

// Shares are taken of the difference between the runs: where that is small, they are mostly chance.
void add_small_difference(Page& page, const PatchTable& patching) {
  constexpr double kSmall = 1;
  const double difference = std::abs(patching.clean_difference - patching.corrupted_difference);
  if (!(difference < kSmall)) return;
  char number[16];
  std::snprintf(number, sizeof number, "%.1g", difference);
  page.prose(str("The two runs differ by only ", number, " in this, so shares of it say little; --answer and --versus ",
                 "name other tokens."));
}

void add_patching(Page& page, const Explanation& explanation) {
  if (!explanation.patching || !explanation.versus) return;
  const PatchTable& patching = *explanation.patching;
  const std::vector<std::string>&clean = explanation.prompt.tokens, &corrupted = explanation.versus->tokens;
  page.heading("Patching: where the difference between the two prompts is carried");
  page.prose(
      "In a run of the second prompt, one place (before a block, at a token) gets the numbers of the first prompt's "
      "run. "
      "0: all stays as in the second run; 1: it becomes as in the first. Measured is logit(" +
      in_quotes(patching.answer.token) + ") - logit(" + in_quotes(patching.versus_answer.token) +
      "): " + signed_number(patching.clean_difference) + " in the first run, " +
      signed_number(patching.corrupted_difference) + " in the second.");
  add_compared(page, explanation);
  add_small_difference(page, patching);
  constexpr int kColumnWidth = 11;
  const auto room = static_cast<size_t>((page.width() - 2 - 8) / (kColumnWidth + 2));
  const std::vector<size_t> positions = patch_positions(patching, clean.size(), room);
  std::vector<Column> columns = {{"before\nblock", Align::kRight, 6}};
  for (const size_t position : positions) {
    std::string header = std::to_string(position) + " " + visible(clean[position]);
    const bool differs = position < corrupted.size() && corrupted[position] != clean[position];
    header += differs ? "\nnot " + visible(corrupted[position]) : "\n";
    columns.push_back({header, Align::kRight, kColumnWidth});
  }
  Table table(std::move(columns));
  for (size_t layer = 0; layer < patching.recovered.size(); ++layer) {
    std::vector<std::string> row = {layer < patching.layers.size() ? visible(patching.layers[layer]) : ""};
    for (const size_t position : positions) {
      const double value = number_at(patching.recovered, layer, position);
      const std::string number = signed_number(value);
      const std::string cell = page.colour() ? " " + number + " " : shade(value) + " " + number;
      row.push_back(heat(value, cell, page.colour()));
    }
    table.add(std::move(row));
  }
  page.table(table);
  if (positions.size() < clean.size()) {
    page.prose("Shown are the " + std::to_string(positions.size()) + " of " + std::to_string(clean.size()) +
               " positions where a patch does most.");
  }
}

void add_patterns(Page& page, const Explanation& explanation) {
  if (explanation.heads.empty()) return;
  page.heading("Where the strongest heads look from the last position (layer.head, its push, its attention)");
  Table table({{""}, {"", Align::kRight}, {"", Align::kLeft, page.width() - 24}});
  for (const HeadPattern& head : explanation.heads) {
    const std::vector<double> weights = head.pattern.empty() ? std::vector<double>{} : head.pattern.back();
    const std::vector<size_t> order = by_size(weights);
    std::string looks;
    for (size_t i = 0; i < std::min(order.size(), kKeys); ++i) {
      const size_t key = order[i];
      if (key >= explanation.prompt.tokens.size()) continue;
      if (!looks.empty()) looks += ", ";
      looks += std::to_string(key) + " " + shortened(visible(explanation.prompt.tokens[key]), page.token_width()) +
               " " + percent(weights[key]);
    }
    table.add({str(head.layer, ".", head.head), signed_number(head.logit, 3), looks});
  }
  page.table(table);
}

}  // namespace

std::string render_terminal(const Explanation& explanation, TerminalOptions options) {
  Page page(options);
  add_headline(page, explanation);
  add_tokens(page, explanation);
  add_next_tokens(page, "The most likely next tokens", explanation.next_tokens);
  if (explanation.versus) {
    add_next_tokens(page, "The most likely next tokens after the second prompt", explanation.versus_next_tokens);
  }
  add_lens(page, explanation);
  add_components(page, explanation.attribution);
  add_heads(page, explanation.attribution);
  add_patching(page, explanation);
  add_patterns(page, explanation);
  return page.text().substr(1);
}

}  // namespace glassformer
