#pragma once
// What `explain` finds, as plain numbers: the one source of the terminal's tables, of `--json` and of the page.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace glassformer {

struct ModelSummary {
  std::string name;          // The file's or folder's own name.
  std::string architecture;  // "llama"
  std::string dtype;         // "float32": what it computes in.
  int64_t n_layers = 0, n_heads = 0, n_kv_heads = 0, d_model = 0, d_head = 0, d_mlp = 0, d_vocab = 0, n_ctx = 0;
  int64_t n_parameters = 0;
};

struct Prompt {
  std::string text;
  std::vector<int64_t> ids;
  std::vector<std::string> tokens;  // What a person reads: " capital", not "Ġcapital".
};

struct TokenScore {
  int64_t id = 0;
  std::string token;
  double logit = 0, probability = 0;
};

/// The residual stream read through the final norm and the unembedding, layer by position.
struct LensTable {
  std::vector<std::string> layers;  // "embed", "0", "1", …: the stream after that block; the last is the output.
  std::vector<std::vector<TokenScore>> top;      // layer pos: the most likely next token there.
  std::vector<std::vector<double>> probability;  // layer pos: the answer's probability there.
  std::vector<std::vector<int64_t>> rank;        // layer pos: the answer's rank there, 0 is the top.
};

struct Component {
  std::string name;  // "embed", "3.attn", "3.mlp", "bias"
  std::string kind;  // "embed", "attn", "mlp", "bias"
  int64_t layer = -1;
  double logit = 0;  // What it adds to the answer's logit (with the final norm's scale held).
};

/// Direct logit attribution: the components' values sum to the answer's logit.
struct AttributionTable {
  TokenScore answer;
  std::vector<Component> components;
  std::vector<std::vector<double>> heads;  // layer head: each head's share of its block's attention output.
  double sum = 0;                          // Of all components.
};

/// The answer of the first prompt against the answer of the second, as patches from the first into a run of the second
/// move it: 0 is the second prompt's own logit difference, 1 the first's.
struct PatchTable {
  TokenScore answer, versus_answer;                       // Scores in the runs of their own prompts.
  double clean_difference = 0, corrupted_difference = 0;  // logit(answer) - logit(versus_answer) in each run.
  std::vector<std::string> layers;                        // "0", "1", …: the stream before that block.
  std::vector<std::vector<double>> recovered;             // layer pos
};

struct HeadPattern {
  int64_t layer = 0, head = 0;
  double logit = 0;                          // What the head adds to the answer's logit.
  std::vector<std::vector<double>> pattern;  // query_pos key_pos
};

struct Explanation {
  ModelSummary model;
  Prompt prompt;
  std::vector<TokenScore> next_tokens;  // The most likely ones, best first.
  LensTable lens;
  AttributionTable attribution;
  std::vector<HeadPattern> heads;  // The strongest, by the size of what they add.
  std::optional<Prompt> versus;
  std::vector<TokenScore> versus_next_tokens;
  std::optional<PatchTable> patching;
};

/// The explanation as JSON text, the members' names as keys.
std::string to_json(const Explanation& explanation);

}  // namespace glassformer
