#include "cli/arguments.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string_view>

namespace glassformer::cli {
namespace {

std::string unprotected(std::string text) {
  if (text.ends_with('\0')) text.pop_back();
  return text;
}

// A text as it is, also an empty one: CLI11 takes "" for no value where the value may be missing.
template <typename Text>
CLI::Option* declare_text(CLI::App& app, const char* name, Text& text, const char* help) {
  const auto keep = [&text](const CLI::results_t& given) {
    text = unprotected(given.back());
    return true;
  };
  return app.add_option(name, keep, help)->expected(1)->type_name("TEXT");
}

CLI::Option* declare_texts(CLI::App& app, const char* name, std::vector<std::string>& texts, const char* help) {
  const auto keep = [&texts](const CLI::results_t& given) {
    for (const std::string& text : given) texts.push_back(unprotected(text));
    return true;
  };
  return app.add_option(name, keep, help)->expected(1, -1)->type_name("TEXT");
}

template <typename Number>
struct Expected {
  const char* words;
  Number least = std::numeric_limits<Number>::lowest(), most = std::numeric_limits<Number>::max();
};

constexpr Expected<int64_t> kWhole = {"a whole number"}, kCount = {"a whole number, 0 or more", 0, int64_t{1} << 40};
constexpr Expected<int64_t> kWholeList = {"whole numbers, as in 1,2,3"};
constexpr Expected<uint64_t> kSeed = {"a whole number, 0 or more"};
constexpr Expected<int> kThreads = {"a whole number from 1 to 4096", 1, 4096};
constexpr Expected<double> kNumber = {"a number"};

// Stricter than CLI11, for which "" is 0, "010" is 8 and -1 a large seed.
template <typename Number>
Number checked(const std::string& name, std::string_view text, const Expected<Number>& expected) {
  std::string_view digits = text;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  Number number{};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  if (whole && number >= expected.least && number <= expected.most) return number;
  throw CLI::ValidationError(name.substr(name.find("--")),
                             "found '" + std::string(text) + "'; expected " + expected.words);
}

template <typename Number, typename Value>
CLI::Option* declare_number(CLI::App& app, const char* name, Value& value, const Expected<Number>& expected,
                            const char* help) {
  const auto keep = [&value, name, expected](const CLI::results_t& given) {
    value = checked(name, given.back(), expected);
    return true;
  };
  return app.add_option(name, keep, help)->expected(1)->type_name("N");
}

void declare_model(CLI::App& app, std::string& model) {
  declare_text(app, "MODEL", model, "a GGUF file, a model's folder, or a name in the local Hugging Face cache")
      ->required();
}

void declare_json(CLI::App& app, bool& json) { app.add_flag("--json", json, "print JSON"); }

void declare_engine(CLI::App& app, EngineArguments& arguments) {
  app.add_option("--dtype", arguments.dtype, "what is computed in (default: float32)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "float64"}));
  app.add_option("--device", arguments.device, "where it is computed (default: cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  declare_number(app, "--threads", arguments.threads, kThreads, "how many processor cores to use (default: all)");
  declare_json(app, arguments.json);
}

// An option for lists of numbers: "1,2,3", or given several times.
CLI::Option* declare_list(CLI::App& app, const char* name, std::vector<int64_t>& values, const char* help) {
  const auto keep = [&values, name](const CLI::results_t& given) {
    for (const std::string& list : given) {
      size_t start = 0;
      for (size_t comma = 0; comma != std::string::npos; start = comma + 1) {
        comma = list.find(',', start);
        values.push_back(checked(name, std::string_view(list).substr(start, comma - start), kWholeList));
      }
    }
    return true;
  };
  return app.add_option(name, keep, help)->expected(1, -1)->allow_extra_args(false)->type_name("N");
}

}  // namespace

void declare(CLI::App& app, InfoArguments& arguments) {
  declare_model(app, arguments.model);
  app.add_flag("--weights", arguments.weights, "list the tensors in the files");
  declare_json(app, arguments.json);
  app.footer("Example:\n  glassformer info model.gguf");
}

void declare(CLI::App& app, TokensArguments& arguments) {
  declare_model(app, arguments.model);
  CLI::Option* text = declare_text(app, "TEXT", arguments.text, "the text; - reads standard input");
  declare_list(app, "--ids", arguments.ids, "token ids to decode instead: 1,2,3")->excludes(text);
  app.add_flag("--no-special", arguments.no_special,
               "don't add special tokens; with --ids, leave them out of the text");
  declare_json(app, arguments.json);
  app.footer("Example:\n  glassformer tokens model.gguf \"The capital of France is\"");
}

void declare(CLI::App& app, NodesArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "PATTERN", arguments.pattern,
               "only names with this text in them, or that match: 'blocks.0.*hook_?'");
  app.add_flag("--steps", arguments.steps, "also how each node is computed");
  declare_engine(app, arguments);
  app.footer("Example:\n  glassformer nodes model.gguf blocks.0.attn --steps");
}

void declare(CLI::App& app, GenerateArguments& arguments) {
  declare_model(app, arguments.model);
  declare_texts(app, "PROMPT", arguments.prompts, "one or more prompts, continued together")
      ->required()
      ->allow_extra_args();
  declare_number(app, "-n,--max-new-tokens", arguments.max_new_tokens, kCount, "how many tokens at most (default: 50)");
  declare_texts(app, "--stop", arguments.stop, "end when this text was generated; may be given several times")
      ->allow_extra_args(false);
  app.add_flag("--greedy", arguments.greedy,
               "take the most likely token each time (default, unless one of the next five is given)");
  declare_number(app, "--temperature", arguments.temperature, kNumber, "divides the logits before drawing");
  declare_number(app, "--top-k", arguments.top_k, kWhole, "draw among the k most likely tokens");
  declare_number(app, "--top-p", arguments.top_p, kNumber,
                 "draw among the most likely tokens that make up this probability");
  declare_number(app, "--min-p", arguments.min_p, kNumber, "draw among tokens with this share of the top probability");
  declare_number(app, "--seed", arguments.seed, kSeed, "the same seed draws the same tokens");
  for (const char* name : {"--temperature", "--top-k", "--top-p", "--min-p", "--seed"}) {
    app.get_option("--greedy")->excludes(app.get_option(name));
  }
  declare_number(app, "--frequency-penalty", arguments.frequency_penalty, kNumber,
                 "taken from a token's logit for each time that it was there");
  declare_number(app, "--repetition-penalty", arguments.repetition_penalty, kNumber,
                 "divides the logits of tokens that were there");
  declare_engine(app, arguments);
  app.footer(
      "Ctrl-C ends a text where it is.\n"
      "Example:\n  glassformer generate model.gguf \"Once upon a time\" -n 40 --temperature 0.8 --seed 1");
  app.callback([&app, &arguments] {
    for (const char* name : {"--temperature", "--top-k", "--top-p", "--min-p", "--seed"}) {
      if (app.count(name) > 0) arguments.sample = true;
    }
  });
}

void declare(CLI::App& app, LensArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "PROMPT", arguments.prompt, "the text that the model reads")->required();
  declare_list(app, "--position", arguments.positions, "only these positions; -1 is the last");
  declare_text(app, "--target", arguments.target, "follow this token through the layers");
  declare_number(app, "--top-k", arguments.top_k, kCount,
                 "how many tokens to show (default: 1); from 2 on at the last position, unless --position says others");
  declare_engine(app, arguments);
  app.footer("Example:\n  glassformer lens model.gguf \"The capital of France is\" --target \" Paris\"");
}

void declare(CLI::App& app, AttentionArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "PROMPT", arguments.prompt, "the text that the model reads")->required();
  CLI::Option* layer =
      declare_number(app, "--layer", arguments.layer, kWhole, "all heads of this layer; negative: from the end");
  declare_number(app, "--head", arguments.head, kWhole, "one head of --layer, with its whole pattern")->needs(layer);
  declare_number(app, "--heads", arguments.count, kCount, "how many of the strongest heads (default: 10)")
      ->excludes(layer);
  declare_engine(app, arguments);
  app.footer("Example:\n  glassformer attention model.gguf \"The capital of France is\" --layer 20 --head 3");
}

void declare(CLI::App& app, PatchArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "CLEAN", arguments.clean, "the prompt whose activations are put in")->required();
  declare_text(app, "CORRUPTED", arguments.corrupted, "the prompt that gets them; as many tokens")->required();
  declare_text(app, "--activation", arguments.activation,
               "resid_pre (default), resid_mid, attn_out, mlp_out, z, q, k, v, or another node of the blocks");
  declare_list(app, "--layer", arguments.layers, "only these layers; negative: from the end");
  app.add_flag("--by-head", arguments.by_head, "each head by itself");
  app.add_flag("--no-position", arguments.no_position, "all positions at once");
  declare_text(app, "--answer", arguments.answer,
               "a token that the clean prompt favours (default: its most likely one)");
  declare_text(app, "--versus", arguments.versus,
               "a token that the corrupted one favours (default: its most likely one)");
  declare_engine(app, arguments);
  app.footer("Example:\n  glassformer patch model.gguf \"The capital of France is\" \"The capital of Italy is\"");
}

void declare(CLI::App& app, ExplainArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "PROMPT", arguments.prompt, "the text that the model reads")->required();
  CLI::Option* second =
      declare_text(app, "--vs", arguments.versus, "a second prompt of as many tokens: where do the two answers part?");
  declare_text(app, "--answer", arguments.answer, "the token to explain (default: the prompt's most likely one)");
  declare_text(app, "--versus", arguments.versus_answer,
               "the token to compare it with (default: the second prompt's most likely other one)")
      ->needs(second);
  declare_text(app, "--html", arguments.html, "also write a page to this file")->type_name("FILE");
  declare_number(app, "--heads", arguments.heads, kCount,
                 "attention patterns of that many of the strongest heads (default: 6)");
  declare_number(app, "--top-k", arguments.top_k, kCount, "how many next tokens (default: 10)");
  declare_engine(app, arguments);
  app.footer(
      "Example:\n"
      "  glassformer explain model.gguf \"The capital of France is\" --vs \"The capital of Italy is\" --html "
      "report.html\n"
      "  glassformer explain model.gguf \"The capital of France is\" --answer Lyon");
}

std::string protect(std::string argument) {
  if (argument.starts_with('[') && argument.ends_with(']')) argument.push_back('\0');
  return argument;
}

}  // namespace glassformer::cli
