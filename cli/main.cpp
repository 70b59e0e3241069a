// The program: a table of commands.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <new>

#include "cli/arguments.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "glassformer/base/errors.h"
#include "glassformer/base/version.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

using Run = std::function<int()>;

// A command that looks at files only.
template <typename Arguments>
Run light(CLI::App& app) {
  const auto arguments = std::make_shared<Arguments>();
  declare(app, *arguments);
  return [arguments] { return run(*arguments); };
}

// A command that runs the model, and so loads libtorch.
template <typename Arguments>
Run engine(CLI::App& app) {
  const auto arguments = std::make_shared<Arguments>();
  declare(app, *arguments);
  return [arguments] { return run_in_engine(*arguments); };
}

struct Command {
  const char* name;
  const char* help;
  Run (*declare)(CLI::App& app);
};

constexpr Command kCommands[] = {
    {"info", "What a model is: architecture, sizes, weights, tokenizer.", light<InfoArguments>},
    {"tokens", "A text as the model's tokens, or tokens as text.", light<TokensArguments>},
    {"nodes", "Every activation of a model with its shape.", engine<NodesArguments>},
    {"generate", "Continue one or more prompts.", engine<GenerateArguments>},
    {"lens", "What the model would answer after each layer (logit lens).", engine<LensArguments>},
    {"attention", "Where attention heads look.", engine<AttentionArguments>},
    {"patch", "Which activations carry the difference between two prompts.", engine<PatchArguments>},
    {"explain", "Why the model says what it says, and where a second prompt parts from it.", engine<ExplainArguments>},
};

// Help that says of each option what it takes, and nothing of CLI11's own words.
class Help : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_positional() || option->get_expected_max() == 0) return "";
    const std::string type = option->get_type_name();
    if (const size_t set = type.find('{'); set != std::string::npos) return " " + type.substr(set);
    return " " + type.substr(0, type.find(' '));
  }
};

// Messages are one line, whatever a prompt or a file in them holds.
std::string one_line(std::string_view message) {
  std::string text;
  for (const char c : message)
    text += c == '\n' ? std::string("⏎") : static_cast<unsigned char>(c) < ' ' ? " " : std::string(1, c);
  return text;
}

int fail(int code, std::string_view message) {
  std::cout.flush();
  std::cerr << "glassformer: " << one_line(message) << '\n';
  return code;
}

std::string overview() {
  Table table({{""}, {""}});
  for (const Command& command : kCommands) table.add({command.name, command.help});
  return std::string("Glassformer ") + kVersion +
         ": transformer language models with every activation in the open.\n\n" +
         "Usage: glassformer COMMAND MODEL …\n\nCommands:\n" + table.text(2) +
         "\nMODEL is a GGUF file, a model's folder, or a name in the local Hugging Face cache.\n"
         "Each command has --json, and --help with its options.\n\nExample:\n"
         "  glassformer explain model.gguf \"The capital of France is\" --vs \"The capital of Italy is\" --html "
         "report.html\n";
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command;
    names.emplace_back(command.name);
  }
  const bool option = name.starts_with('-') && name != "-";
  const std::string near = option ? "" : did_you_mean(name, names);
  throw NameError((option ? "no option '" : "no command '") + name + "'" +
                  (near.empty() ? "; see glassformer --help" : near));
}

// The message for arguments that have no place, with the options that come near.
std::string unexpected(const CLI::App& app, const std::string& command) {
  const std::string found = app.remaining().empty() ? "" : app.remaining().front();
  std::string message = "unexpected argument '" + found + "'";
  if (found.size() > 1 && found.front() == '-') {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
    const std::string near = did_you_mean(found, names);
    if (!near.empty()) return message + near;
  }
  return message + "; see glassformer " + command + " --help";
}

// CLI11's words, but where it counts values and names their types.
std::string wrong_value(const CLI::ParseError& error) {
  const std::string message = error.what();
  const bool missing = dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr && message.ends_with(" missing");
  if (missing) return message.substr(0, message.find(':')) + " needs a value after it";
  const size_t again = message.find(": At Most 1 required");
  return again == std::string::npos ? message : message.substr(0, again) + " is given more than once; expected one";
}

int run_command(const Command& command, std::vector<std::string> arguments) {
  CLI::App app(command.help, std::string("glassformer ") + command.name);
  const auto help = std::make_shared<Help>();
  help->column_width(26);
  app.formatter(help);
  const Run run = command.declare(app);
  for (std::string& argument : arguments) argument = protect(std::move(argument));
  std::reverse(arguments.begin(), arguments.end());  // As CLI11 wants them.
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    print(app.help());
    return kSuccess;
  } catch (const CLI::ExtrasError&) {
    return fail(kWrongInput, unexpected(app, command.name));
  } catch (const CLI::ParseError& error) {
    return fail(kWrongInput, wrong_value(error) + "; see glassformer " + command.name + " --help");
  }
  return run();
}

int dispatch(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return fail(kWrongInput, "no command given; see glassformer --help");
  const std::string& first = arguments.front();
  if (first == "help" && arguments.size() > 1) return run_command(find_command(arguments[1]), {"--help"});
  if (first == "--help" || first == "-h" || first == "help") {
    print(overview());
    return kSuccess;
  }
  if (first == "--version") {
    print(std::string("glassformer ") + kVersion + "\n");
    return kSuccess;
  }
  return run_command(find_command(first), {arguments.begin() + 1, arguments.end()});
}

// The first line: libtorch adds a backtrace.
std::string_view first_line(std::string_view text) { return text.substr(0, text.find('\n')); }

int guarded(const std::vector<std::string>& arguments) {
  try {
    return dispatch(arguments);
  } catch (const Error& error) {
    return fail(kWrongInput, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kFailure, "out of memory");
  } catch (const std::exception& error) {
    return fail(kFailure, first_line(error.what()));
  }
}

}  // namespace
}  // namespace glassformer::cli

int main(int count, char** values) {
  std::signal(SIGPIPE, SIG_DFL);
  std::signal(SIGINT, [](int) { _exit(glassformer::cli::kInterrupted); });
  std::ios::sync_with_stdio(false);
  const int code = glassformer::cli::guarded(std::vector<std::string>(values + 1, values + count));
  std::cout.flush();
  const bool lost = !std::cout && code == glassformer::cli::kSuccess;
  if (lost) std::cerr << "glassformer: standard output can't be written\n";
  _exit(lost ? glassformer::cli::kFailure : code);  // Past libtorch's clean-up, which frees what ends anyway.
}
