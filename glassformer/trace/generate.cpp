#include "glassformer/trace/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_fill.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer {
namespace {

at::Tensor as_tensor(const std::vector<int64_t>& ids) { return at::tensor(ids, at::TensorOptions(at::kLong)); }

// The same region with its positions counted from `begin` of the whole trace, or all positions from there on.
Region shifted(const Region& region, const Node& node, int64_t begin, int64_t end) {
  if (region.mask().defined())
    throw InputError(node.name + ": a mask can't follow the steps of a generation; give indices");
  Region whole;
  bool has_rows = false;
  for (const Region::AxisIndices& given : region.axes()) {
    Region::AxisIndices axis = given;
    if (!axis.word.empty()) axis.axis = static_cast<size_t>(axis_named(node, axis.word));
    if (static_cast<int>(axis.axis) == node.row_axis) {
      has_rows = true;
      for (int64_t& index : axis.indices) index += index < 0 ? end : begin;
    }
    whole.at_axis(axis.axis, axis.indices, axis.drop);
  }
  if (has_rows) return whole;
  std::vector<int64_t> rows;
  for (int64_t row = begin; row < end; ++row) rows.push_back(row);
  return whole.at_axis(static_cast<size_t>(node.row_axis), rows);
}

}  // namespace

Generation::Generation(std::vector<Trace*> traces, GenerateOptions options)
    : traces_(std::move(traces)), options_(std::move(options)) {
  if (traces_.empty()) throw InputError("no prompts");
  if (options_.max_new_tokens < 0)
    throw InputError(str("max_new_tokens is ", options_.max_new_tokens, "; expected 0 or more"));
  check_sampler(options_.sampler);
  const Model& model = traces_.front()->model();
  stop_tokens_ = options_.stop_tokens.value_or(model.eos_ids());
  if (options_.seed) generator_ = std::make_shared<at::Generator>(at::detail::createCPUGenerator(*options_.seed));
  for (const StepEdit& edit : options_.edits) model.graph().find(edit.node);
  for (const std::string& text : options_.stop_strings)
    if (text.empty()) throw InputError("a stop string is empty");
  results_.resize(traces_.size());
  to_append_.assign(traces_.size(), -1);
  for (Trace* trace : traces_) {
    if (trace->batch() != 1)
      throw InputError(str("generation takes traces of one sequence each; found ", trace->batch()));
    const at::Tensor tokens = trace->tokens().to(at::kCPU).contiguous();
    for (const StepHook& hook : options_.hooks) {
      HookOptions when{hook.steps, trace->n_segments() - 1};
      for (int64_t& step : when.segments) step += when.first_segment;
      trace->hook(hook.node, hook.function, when);
    }
    texts_.emplace_back(tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + tokens.numel());
    begins_.push_back(trace->begin());
    if (options_.max_new_tokens == 0) results_[texts_.size() - 1].finish = "length";
  }
}

bool Generation::done() const {
  return std::all_of(results_.begin(), results_.end(), [](const Generated& result) { return !result.finish.empty(); });
}

void Generation::apply_edits(Trace& trace, int64_t begin) const {
  const Graph& graph = trace.model().graph();
  for (const StepEdit& edit : options_.edits) {
    if (!edit.steps.empty() && std::count(edit.steps.begin(), edit.steps.end(), step_) == 0) continue;
    trace.set(edit.node, edit.value, shifted(edit.region, graph.node(graph.find(edit.node)), begin, trace.length()));
  }
}

std::string Generation::finish_of(const Generated& result, const Trace& trace) const {
  if (std::count(stop_tokens_.begin(), stop_tokens_.end(), result.ids.back()) > 0) return "stop token";
  if (!options_.stop_strings.empty()) {
    const std::string text = trace.model().tokenizer().decode(result.ids);
    for (const std::string& stop : options_.stop_strings)
      if (text.find(stop) != std::string::npos) return "stop string";
  }
  if (static_cast<int64_t>(result.ids.size()) >= options_.max_new_tokens) return "length";
  if (trace.length() >= trace.model().config().n_ctx) return "context";
  return "";
}

void Generation::begin_step() {
  if (begun_) return;
  begun_ = true;
  for (size_t i = 0; i < traces_.size(); ++i) {
    if (!results_[i].finish.empty()) continue;
    if (to_append_[i] >= 0) {
      begins_[i] = traces_[i]->length();
      traces_[i]->append(as_tensor({to_append_[i]}));
      to_append_[i] = -1;
    }
    apply_edits(*traces_[i], begins_[i]);
  }
}

// Logits of one position; while there are too few new tokens, none that ends the text can be drawn.
at::Tensor Generation::without_stop(const at::Tensor& logits, const Generated& result) const {
  if (static_cast<int64_t>(result.ids.size()) >= options_.min_new_tokens || stop_tokens_.empty()) return logits;
  return logits.index_fill(1, as_tensor(stop_tokens_).to(logits.device()), -std::numeric_limits<double>::infinity());
}

std::vector<int64_t> Generation::step() {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> ids(traces_.size(), -1);
  if (done()) return ids;
  begin_step();
  std::vector<Trace*> active;
  for (size_t i = 0; i < traces_.size(); ++i)
    if (results_[i].finish.empty()) active.push_back(traces_[i]);
  const std::vector<at::Tensor> logits = read_all(active, "logits", Positions{{-1}}, {.keep_values = true});
  std::vector<at::Tensor> rows;
  size_t next = 0;
  // Ended sequences take part in the draw, so that the others' draws are those of the whole batch.
  for (const Generated& result : results_)
    rows.push_back(result.finish.empty() ? without_stop(logits[next++].squeeze(1), result)
                                         : at::zeros({1, logits.front().size(2)}, logits.front().options()));
  const at::Tensor drawn = sample(at::cat(rows, 0), texts_, options_.sampler, generator_.get()).to(at::kCPU);
  for (size_t i = 0; i < traces_.size(); ++i) {
    if (!results_[i].finish.empty()) continue;
    ids[i] = drawn[static_cast<int64_t>(i)].item<int64_t>();
    results_[i].ids.push_back(ids[i]);
    texts_[i].push_back(ids[i]);
    to_append_[i] = ids[i];
    results_[i].finish = finish_of(results_[i], *traces_[i]);
  }
  ++step_;
  begun_ = false;
  return ids;
}

std::vector<Generated> generate(const std::vector<Trace*>& traces, const GenerateOptions& options) {
  Generation generation(traces, options);
  while (!generation.done()) generation.step();
  return generation.results();
}

}  // namespace glassformer
