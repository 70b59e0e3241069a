#pragma once
// What the commands share that run a model.

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/output.h"
#include "glassformer/analysis/explanation.h"
#include "glassformer/trace/trace.h"

namespace glassformer::cli {

/// Ctrl-C ends the program at once, with exit code 130.
void exit_on_interrupt();
/// From now on the first Ctrl-C is noted, and only the second ends the program.
void note_interrupts();
bool was_interrupted();

/// One line on standard error that says what is being done, and how much of it is; only on a terminal. It is gone when
/// this is.
class Progress {
 public:
  Progress();
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;

  /// Work that does not say how far it is.
  void show(const std::string& what);
  void show(const std::string& what, int64_t done, int64_t total);
  /// For a part of the work: a function that shows how far it is, empty where there is no terminal. Parts of one
  /// command share the bar's width.
  std::function<void(int64_t done, int64_t total)> part(const std::string& what, int64_t from_percent,
                                                        int64_t to_percent);
  void clear();

 private:
  void write(const std::string& line);

  bool enabled_ = false;
  double share_ = 0;  // The bar never goes back.
  std::string what_;
  std::chrono::steady_clock::time_point drawn_;
};

/// The model as the options ask for it.
std::shared_ptr<const Model> load(const EngineArguments& arguments);

/// The id of `text`, which must be one token by itself or with a space before it; `InputError` with the tokens that it
/// is otherwise.
int64_t single_token(const Model& model, const std::string& text, const char* option);
/// The index, counted from the end where it is negative; `InputError` out of range.
int64_t checked_index(int64_t index, int64_t count, const char* what);

std::vector<double> row_of(const at::Tensor& values);
std::vector<std::vector<double>> matrix_of(const at::Tensor& values);

std::string token_text(const Model& model, int64_t id);
Json json_of(const Prompt& prompt);
Json json_of(const TokenScore& score);

/// A cell of a heat map: on a coloured background, or beside a shade where there is no colour.
std::string heat_cell(double value, const std::string& text);

/// How many columns of that width fit beside `used` ones.
size_t columns_that_fit(int used, int width);

}  // namespace glassformer::cli
