#pragma once

#include <string>
#include <vector>

#include "glassformer/trace/sampler.h"
#include "glassformer/trace/trace.h"

namespace glassformer {

/// Numbers put into a node while generating. At step 0 the positions are the prompt's; at each later step the one new
/// token.
struct StepEdit {
  std::string node;
  at::Tensor value;
  Region region;               // Positions count within the step's own.
  std::vector<int64_t> steps;  // Empty: every step.
};

/// A function on a node while generating: called at each of these steps with the node's value at the step's positions,
/// the prompt's at step 0, the one new token's later.
struct StepHook {
  std::string node;
  HookFunction function;
  std::vector<int64_t> steps;  // Empty: every step.
};

struct GenerateOptions {
  int64_t max_new_tokens = 20;
  int64_t min_new_tokens = 0;  // Before so many no stop token is drawn.
  SamplerOptions sampler = {};
  std::optional<uint64_t> seed = {};                     // Of a generator of its own; missing: torch's default one.
  std::optional<std::vector<int64_t>> stop_tokens = {};  // Missing: the model's end-of-text tokens.
  std::vector<std::string> stop_strings = {};            // End a text as soon as one stands in what was generated.
  std::vector<StepEdit> edits = {};
  std::vector<StepHook> hooks = {};  // Called for each text by itself.
};

struct Generated {
  std::vector<int64_t> ids;  // The new tokens, with the one that ended the text.
  std::string finish;        // "stop token", "stop string", "length", "context"; empty while it goes on.
};

/// Generates for several traces of one sequence each, token by token: each step reads the last logits of all, draws,
/// and appends. The traces keep what was appended and set, and can be read afterwards.
class Generation {
 public:
  Generation(std::vector<Trace*> traces, GenerateOptions options);

  bool done() const;
  /// Appends the tokens drawn last and makes the next step's edits, so that the step can be read before `step` draws.
  /// `step` does so by itself.
  void begin_step();
  /// One more token for each unfinished sequence: their ids, -1 for those that had ended.
  std::vector<int64_t> step();
  const std::vector<Generated>& results() const { return results_; }

 private:
  void apply_edits(Trace& trace, int64_t begin) const;
  at::Tensor without_stop(const at::Tensor& logits, const Generated& result) const;
  std::string finish_of(const Generated& result, const Trace& trace) const;

  std::vector<Trace*> traces_;
  GenerateOptions options_;
  std::vector<int64_t> stop_tokens_;
  std::shared_ptr<at::Generator> generator_;  // Of the seed; null: torch's own.
  std::vector<Generated> results_;
  std::vector<std::vector<int64_t>> texts_;
  std::vector<int64_t> begins_;     // Where the current step's positions start.
  std::vector<int64_t> to_append_;  // The last step's tokens.
  int64_t step_ = 0;
  bool begun_ = false;  // Whether the tokens of the step before stand in the traces.
};

/// All steps at once.
std::vector<Generated> generate(const std::vector<Trace*>& traces, const GenerateOptions& options = {});

}  // namespace glassformer
