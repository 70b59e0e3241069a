#include "cli/arguments.h"

#include <CLI/CLI.hpp>

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
  app.add_option("--threads", arguments.threads, "how many processor cores to use (default: all)")
      ->check(CLI::Range(1, 4096));
  declare_json(app, arguments.json);
}

CLI::Option* declare_count(CLI::App& app, const char* name, int64_t& value, const char* help) {
  const auto wrong = [](const std::string& text) {
    int64_t number = 0;
    const bool good = CLI::detail::lexical_cast(text, number) && number >= 0 && number <= int64_t{1} << 40;
    return good ? std::string() : "'" + text + "' is no count; expected a whole number, 0 or more";
  };
  return app.add_option(name, value, help)->check(CLI::Validator(wrong, "", "count"));
}

// An option for lists of numbers: "1,2,3", or given several times.
void declare_list(CLI::App& app, const char* name, std::vector<int64_t>& values, const char* help) {
  app.add_option(name, values, help)->delimiter(',')->allow_extra_args(false);
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
  declare_list(app, "--ids", arguments.ids, "token ids to decode instead: 1,2,3");
  app.get_option("--ids")->excludes(text);
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
  declare_count(app, "-n,--max-new-tokens", arguments.max_new_tokens, "how many tokens at most (default: 50)");
  declare_texts(app, "--stop", arguments.stop, "end when this text was generated; may be given several times")
      ->allow_extra_args(false);
  app.add_flag("--greedy", arguments.greedy,
               "take the most likely token each time (default, unless one of the next five is given)");
  app.add_option("--temperature", arguments.temperature, "divides the logits before drawing");
  app.add_option("--top-k", arguments.top_k, "draw among the k most likely tokens");
  app.add_option("--top-p", arguments.top_p, "draw among the most likely tokens that make up this probability");
  app.add_option("--min-p", arguments.min_p, "draw among tokens with this share of the top probability");
  app.add_option("--seed", arguments.seed, "the same seed draws the same tokens");
  for (const char* name : {"--temperature", "--top-k", "--top-p", "--min-p", "--seed"}) {
    app.get_option("--greedy")->excludes(app.get_option(name));
  }
  app.add_option("--frequency-penalty", arguments.frequency_penalty,
                 "taken from a token's logit for each time that it was there");
  app.add_option("--repetition-penalty", arguments.repetition_penalty, "divides the logits of tokens that were there");
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
  declare_count(app, "--top-k", arguments.top_k,
                "how many tokens to show (default: 1); from 2 on at the last position, unless --position says others");
  declare_engine(app, arguments);
  app.footer("Example:\n  glassformer lens model.gguf \"The capital of France is\" --target \" Paris\"");
}

void declare(CLI::App& app, AttentionArguments& arguments) {
  declare_model(app, arguments.model);
  declare_text(app, "PROMPT", arguments.prompt, "the text that the model reads")->required();
  CLI::Option* layer = app.add_option("--layer", arguments.layer, "all heads of this layer; negative: from the end");
  app.add_option("--head", arguments.head, "one head of --layer, with its whole pattern")->needs(layer);
  declare_count(app, "--heads", arguments.count, "how many of the strongest heads (default: 10)")->excludes(layer);
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
  declare_text(app, "--html", arguments.html, "also write a page to this file");
  declare_count(app, "--heads", arguments.heads, "attention patterns of that many of the strongest heads (default: 6)");
  declare_count(app, "--top-k", arguments.top_k, "how many next tokens (default: 10)");
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
