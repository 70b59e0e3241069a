#pragma once
// What the user gave to each command, as plain values.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace CLI {
class App;
}

namespace glassformer::cli {

struct InfoArguments {
  std::string model;
  bool weights = false, json = false;
};

struct TokensArguments {
  std::string model;
  std::optional<std::string> text;
  std::vector<int64_t> ids;
  bool no_special = false, json = false;
};

/// How a model is loaded and run.
struct EngineArguments {
  std::string model;
  std::string dtype = "float32", device = "cpu";
  int threads = 0;  // 0: as libtorch has it.
  bool json = false;
};

struct NodesArguments : EngineArguments {
  std::string pattern;
  bool steps = false;
};

struct GenerateArguments : EngineArguments {
  std::vector<std::string> prompts, stop;
  int64_t max_new_tokens = 50, top_k = 0;
  double temperature = 1, top_p = 1, min_p = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::optional<uint64_t> seed;
  bool greedy = false, sample = false;  // `sample`: an option was given that asks for a draw.
};

struct LensArguments : EngineArguments {
  std::string prompt;
  std::vector<int64_t> positions;
  std::optional<std::string> target;
  int64_t top_k = 1;
};

struct AttentionArguments : EngineArguments {
  std::string prompt;
  std::optional<int64_t> layer, head;
  int64_t count = 10;
};

struct PatchArguments : EngineArguments {
  std::string clean, corrupted, activation = "resid_pre";
  std::vector<int64_t> layers;
  bool by_head = false, no_position = false;
  std::optional<std::string> answer, versus;
};

struct ExplainArguments : EngineArguments {
  std::string prompt;
  std::optional<std::string> versus, answer, versus_answer, html;
  int64_t heads = 6, top_k = 10;
};

/// What crosses the border to the commands that need libtorch.
using EngineCall = std::variant<NodesArguments, GenerateArguments, LensArguments, AttentionArguments, PatchArguments,
                                ExplainArguments>;

/// Declares a command's options and its example.
void declare(CLI::App& app, InfoArguments& arguments);
void declare(CLI::App& app, TokensArguments& arguments);
void declare(CLI::App& app, NodesArguments& arguments);
void declare(CLI::App& app, GenerateArguments& arguments);
void declare(CLI::App& app, LensArguments& arguments);
void declare(CLI::App& app, AttentionArguments& arguments);
void declare(CLI::App& app, PatchArguments& arguments);
void declare(CLI::App& app, ExplainArguments& arguments);

/// Keeps CLI11 from taking a text like "[a,b]" apart; every argument goes through this before parsing.
std::string protect(std::string argument);

/// Run a command; they give the exit code.
int run(const InfoArguments& arguments);
int run(const TokensArguments& arguments);
int run(const NodesArguments& arguments);
int run(const GenerateArguments& arguments);
int run(const LensArguments& arguments);
int run(const AttentionArguments& arguments);
int run(const PatchArguments& arguments);
int run(const ExplainArguments& arguments);

}  // namespace glassformer::cli
