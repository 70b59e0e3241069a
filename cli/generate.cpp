#include "glassformer/trace/generate.h"

#include <algorithm>
#include <functional>
#include <iostream>
#include <iterator>
#include <random>

#include "cli/session.h"
#include "glassformer/analysis/explain.h"
#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

struct Interrupted {};

// How many blocks the traces have gone through, all together.
int64_t blocks_computed(const std::vector<Trace>& traces) {
  int64_t count = 0;
  for (const Trace& trace : traces) {
    const std::vector<Work> work = trace.work();
    count += std::count_if(work.begin(), work.end(), [](const Work& of) { return of.node.ends_with(".hook_v"); });
  }
  return count;
}

GenerateOptions options_of(const GenerateArguments& arguments) {
  GenerateOptions options;
  options.max_new_tokens = arguments.max_new_tokens;
  options.stop_strings = arguments.stop;
  options.sampler = {.sample = arguments.sample,
                     .temperature = arguments.temperature,
                     .top_k = arguments.top_k,
                     .top_p = arguments.top_p,
                     .min_p = arguments.min_p,
                     .frequency_penalty = arguments.frequency_penalty,
                     .repetition_penalty = arguments.repetition_penalty};
  if (arguments.sample) options.seed = arguments.seed ? *arguments.seed : std::random_device()();
  return options;
}

// What the new tokens add to the text. Decoded behind the prompt, as some decoders drop a text's first space.
std::string continuation(const Tokenizer& tokenizer, const std::vector<int64_t>& prompt,
                         const std::vector<int64_t>& ids) {
  constexpr DecodeOptions kPlain = {.skip_special_tokens = true};
  std::vector<int64_t> all = prompt;
  all.insert(all.end(), ids.begin(), ids.end());
  const std::string before = tokenizer.decode(prompt, kPlain), text = tokenizer.decode(all, kPlain);
  return text.starts_with(before) ? text.substr(before.size()) : tokenizer.decode(ids, kPlain);
}

// Without U+FFFD at the end, which stands for a character whose last bytes are still to come.
std::string_view whole_characters(std::string_view text) {
  while (text.ends_with("\xEF\xBF\xBD")) text.remove_suffix(3);
  return text;
}

// No control character but line breaks and tabs reaches a terminal.
std::string harmless(std::string_view text) {
  if (!screen().terminal) return std::string(text);
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c1 = byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7F || c1) {
      result += "\xEF\xBF\xBD";
      if (c1) ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

// The texts of a generation and how far they are printed: one prompt as it grows, several one after the other.
class Texts {
 public:
  Texts(const Model& model, const std::vector<std::string>& prompts) : tokenizer_(model.tokenizer()) {
    for (const std::string& prompt : prompts) prompts_.push_back(describe_prompt(model, prompt));
  }

  std::string text(size_t i, const Generated& result) const {
    return continuation(tokenizer_, prompts_[i].ids, result.ids);
  }

  void print_new(const std::vector<Generated>& results, bool ended, Progress& progress) {
    if (results.size() == 1) return stream(results.front(), ended);
    for (; next_ < results.size() && (ended || !results[next_].finish.empty()); ++next_) {
      progress.clear();
      print((next_ > 0 ? "\n" : "") + bold(in_quotes(prompts_[next_].text)) + "\n");
      print(harmless(text(next_, results[next_])) + "\n");
      std::cout.flush();
    }
  }

  Json json(const std::vector<Generated>& results) const {
    Json list = Json::array();
    for (size_t i = 0; i < results.size(); ++i) {
      list.push_back({{"prompt", prompts_[i].text},
                      {"prompt_ids", prompts_[i].ids},
                      {"ids", results[i].ids},
                      {"tokens", tokenizer_.decode_each(results[i].ids)},
                      {"text", text(i, results[i])},
                      {"finish", results[i].finish.empty() ? "interrupted" : results[i].finish}});
    }
    return list;
  }

 private:
  void stream(const Generated& result, bool ended) {
    const std::string all = text(0, result);
    const std::string_view ready = ended ? std::string_view(all) : whole_characters(all);
    if (ready.size() > printed_) print(harmless(ready.substr(printed_)));
    printed_ = std::max(printed_, ready.size());
    if (ended) print("\n");
    std::cout.flush();
  }

  const Tokenizer& tokenizer_;
  std::vector<Prompt> prompts_;
  size_t next_ = 0, printed_ = 0;
};

}  // namespace

int run(const GenerateArguments& arguments) {
  Progress progress;
  progress.show("opening the model");
  const auto model = load(arguments);
  const GenerateOptions options = options_of(arguments);
  Texts texts(*model, arguments.prompts);
  const bool streams = !arguments.json && arguments.prompts.size() == 1;
  constexpr int64_t kReading = 20;  // Percent of the bar, where it goes on while generating.
  std::vector<Trace> traces;
  std::vector<Trace*> pointers;
  std::function<void(int64_t done, int64_t total)> reading, generating;
  TraceOptions trace_options;
  trace_options.poll = [&] {
    if (was_interrupted()) throw Interrupted();
    if (reading) reading(blocks_computed(traces), std::ssize(traces) * model->config().n_layers);
  };
  for (const std::string& prompt : arguments.prompts) traces.emplace_back(model, prompt, trace_options);
  for (Trace& trace : traces) pointers.push_back(&trace);
  Generation generation(pointers, options);
  note_interrupts();
  reading =
      progress.part(traces.size() == 1 ? "reading the prompt" : "reading the prompts", 0, streams ? 100 : kReading);
  try {
    for (int64_t step = 1; !generation.done() && !was_interrupted(); ++step) {
      generation.step();
      if (streams) progress.clear();
      if (!streams && step == 1) generating = progress.part("generating", kReading, 100);
      if (generating) generating(step, options.max_new_tokens);
      reading = {};
      if (!arguments.json) texts.print_new(generation.results(), false, progress);
    }
  } catch (const Interrupted&) {
  }
  progress.clear();
  if (arguments.json) {
    const Json seed = options.seed ? Json(*options.seed) : Json(nullptr);
    print_json({{"model", model->name()}, {"seed", seed}, {"results", texts.json(generation.results())}});
  } else {
    texts.print_new(generation.results(), true, progress);
  }
  return was_interrupted() ? kInterrupted : kSuccess;
}

}  // namespace glassformer::cli
