// Two prompts that differ in one token. Puts that token's residual stream of the second prompt into the first, one
// layer at a time, and prints how far the answer moves from the first prompt's to the second's.
//   patch_and_compare <model> [text] [other text]

#include <array>
#include <cstdio>
#include <string>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/trace.h"

namespace gf = glassformer;

namespace {

std::string top_token(gf::Trace& trace, int64_t& id) {
  id = trace.logits_at(-1).argmax(-1).item<int64_t>();
  return trace.model().tokenizer().decode(std::array{id});
}

int64_t first_difference(gf::Trace& a, gf::Trace& b) {
  const at::Tensor ours = a.tokens(), theirs = b.tokens();
  if (a.length() != b.length()) throw gf::InputError("the prompts have different numbers of tokens");
  const at::Tensor places = ours.ne(theirs).nonzero();  // Rows of batch and position.
  if (places.size(0) != 1) throw gf::InputError("expected prompts that differ in one token");
  return places.select(0, 0).select(0, 1).item<int64_t>();
}

void run(const std::string& path, const std::string& text, const std::string& other_text) {
  const auto model = gf::Model::load(path);
  gf::Trace trace(model, text), other(model, other_text);
  const int64_t position = first_difference(trace, other);
  int64_t answer = 0, other_answer = 0;
  const std::string answer_text = top_token(trace, answer);
  const std::string other_answer_text = top_token(other, other_answer);
  const auto preference = [&](gf::Trace& of) {
    const at::Tensor logits = of.logits_at(-1).select(0, 0);
    return logits.select(0, answer).item<double>() - logits.select(0, other_answer).item<double>();
  };

  std::printf("logit of '%s' minus '%s'\n", answer_text.c_str(), other_answer_text.c_str());
  std::printf("first prompt   %8.3f\n", preference(trace));
  std::printf("second prompt  %8.3f\n", preference(other));
  for (int64_t layer = 0; layer < model->config().n_layers; ++layer) {
    const std::string node = "resid_pre" + std::to_string(layer);
    gf::Trace patched = trace.fork();
    patched.at({position}).set(node, other.at({position}).read(node));
    std::printf("layer %2lld       %8.3f\n", static_cast<long long>(layer), preference(patched));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "patch_and_compare <model> [text] [other text]\n");
    return 2;
  }
  try {
    run(argv[1], argc > 2 ? argv[2] : "The capital of France is", argc > 3 ? argv[3] : "The capital of Italy is");
  } catch (const gf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
