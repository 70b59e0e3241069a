#include "cli/session.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <iostream>

#include "glassformer/analysis/explain.h"
#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

constexpr const char kClearLine[] = "\r\x1b[K";
std::atomic<bool> progress_shown = false, interrupted = false;

void leave(int) {
  if (progress_shown && ::write(STDERR_FILENO, kClearLine, sizeof kClearLine - 1) < 0) _exit(kInterrupted);
  _exit(kInterrupted);
}

void note(int signal) {
  if (interrupted.exchange(true)) leave(signal);
}

at::ScalarType dtype_of(const std::string& name) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw InputError("no dtype '" + name + "'");
}

}  // namespace

void exit_on_interrupt() { std::signal(SIGINT, leave); }
void note_interrupts() { std::signal(SIGINT, note); }
bool was_interrupted() { return interrupted; }

Progress::Progress() : enabled_(isatty(STDERR_FILENO) != 0) {}

void Progress::show(const std::string& what) {
  if (enabled_) write(what + " …");
}

void Progress::show(const std::string& what, int64_t done, int64_t total) {
  constexpr auto kPause = std::chrono::milliseconds(100);
  constexpr int kWidth = 24;
  const auto now = std::chrono::steady_clock::now();
  if (!enabled_ || total <= 0 || (what == what_ && now - drawn_ < kPause)) return;
  what_ = what;
  drawn_ = now;
  share_ = std::clamp(static_cast<double>(done) / static_cast<double>(total), share_, 1.0);
  const std::string filled = bar(share_, 1, kWidth);
  const std::string space(static_cast<size_t>(kWidth - display_width(filled)), ' ');
  write("▕" + filled + space + "▏ " + percent(share_) + "  " + what);
}

std::function<void(int64_t, int64_t)> Progress::part(const std::string& what, int64_t from_percent,
                                                     int64_t to_percent) {
  if (!enabled_) return {};
  const auto report = [this](const std::string& now, int64_t done, int64_t total) { show(now, done, total); };
  return part_of_progress(report, what, from_percent, to_percent);
}

void Progress::write(const std::string& line) {
  std::cerr << kClearLine << line << std::flush;
  progress_shown = true;
}

void Progress::clear() {
  if (progress_shown.exchange(false)) std::cerr << kClearLine << std::flush;
}

std::shared_ptr<const Model> load(const EngineArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  LoadOptions options;
  options.dtype = dtype_of(arguments.dtype);
  if (arguments.device == "cuda") {
    if (!at::hasCUDA()) throw InputError("--device cuda: this machine, or the installed torch, has no CUDA device");
    options.device = at::kCUDA;
  }
  return Model::load(arguments.model, options);
}

int64_t single_token(const Model& model, const std::string& text, const char* option) {
  const Tokenizer& tokenizer = model.tokenizer();
  const std::vector<int64_t> ids = tokenizer.encode(text, {.add_special_tokens = false});
  if (ids.size() == 1) return ids.front();
  if (!text.empty()) {
    const std::vector<int64_t> spaced = tokenizer.encode(" " + text, {.add_special_tokens = false});
    if (spaced.size() == 1) return spaced.front();
  }
  std::string pieces;
  for (const std::string& piece : tokenizer.decode_each(ids)) pieces += (pieces.empty() ? "" : ", ") + in_quotes(piece);
  throw InputError(str(option, ": ", in_quotes(text), " is ", ids.size(), " tokens",
                       pieces.empty() ? "" : " (" + pieces + ")", "; expected one"));
}

int64_t checked_index(int64_t index, int64_t count, const char* what) {
  if (index < -count || index >= count) {
    throw InputError(
        str(what, " ", index, " is out of range; expected 0 to ", count - 1, ", or ", -count, " to -1 from the end"));
  }
  return index < 0 ? index + count : index;
}

std::vector<double> row_of(const at::Tensor& values) {
  const at::Tensor doubles = values.to(at::kCPU, at::kDouble).contiguous();
  return {doubles.const_data_ptr<double>(), doubles.const_data_ptr<double>() + doubles.numel()};
}

std::vector<std::vector<double>> matrix_of(const at::Tensor& values) {
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < values.size(0); ++i) rows.push_back(row_of(values[i]));
  return rows;
}

std::string token_text(const Model& model, int64_t id) { return model.tokenizer().decode(std::vector<int64_t>{id}); }

Json json_of(const Prompt& prompt) { return {{"text", prompt.text}, {"ids", prompt.ids}, {"tokens", prompt.tokens}}; }

Json json_of(const TokenScore& score) {
  return {{"id", score.id}, {"token", score.token}, {"logit", score.logit}, {"probability", score.probability}};
}

std::string heat_cell(double value, const std::string& text) {
  const bool colour = screen().colour;
  return heat(value, (colour ? " " : shade(value) + " ") + text + (colour ? " " : ""), colour);
}

size_t columns_that_fit(int used, int width) {
  constexpr int kBetween = 2;
  return static_cast<size_t>(std::max(1, (screen().width - used) / (width + kBetween)));
}

}  // namespace glassformer::cli
