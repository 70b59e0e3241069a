// Splices a small autoencoder into a model and turns its features off and up, one by one. Its features are the
// directions in which the residual stream writes some words; a trained sparse autoencoder is spliced in the same way.
//   splice_autoencoder <model> [prompt] [layer]

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/trace.h"

namespace gf = glassformer;

namespace {

using ModelPointer = std::shared_ptr<const gf::Model>;

constexpr std::array kWords = {" Paris",  " Rome",   " Berlin", " London", " Madrid",
                               " Moscow", " Vienna", " Lisbon", " Athens"};

// The model with a feature for each word on that node.
ModelPointer spliced(const ModelPointer& model, const std::string& node) {
  const at::Tensor unembed = model->weights().get("unembed.weight");
  at::Tensor directions = unembed.new_empty({kWords.size(), unembed.size(1)});  // feature d_model
  for (size_t i = 0; i < kWords.size(); ++i) {
    const at::Tensor row = unembed.select(0, model->tokenizer().encode(kWords[i]).back());
    directions.select(0, static_cast<int64_t>(i)).copy_(row.div(row.norm()));
  }
  gf::SpliceSpec splice{node, "sae"};
  splice.encode = [directions](const at::Tensor& stream) { return stream.matmul(directions.t()).relu(); };
  splice.decode = [directions](const at::Tensor& acts) { return acts.matmul(directions); };
  return model->extended({.splices = {splice}});
}

std::string answer(gf::Trace& trace) {
  const auto id = trace.logits_at(-1).argmax().item<int64_t>();
  return trace.model().tokenizer().decode(std::array{id});
}

// What the model answers with one feature set at the last position.
std::string answer_with(const gf::Trace& trace, int64_t feature, double value) {
  gf::Trace fork = trace.fork();
  const at::Tensor number = trace.model().weights().get("unembed.weight").new_full({}, value);
  fork.set("sae.acts", number, gf::Region().at("pos", -1).at("feature", feature));
  return answer(fork);
}

void run(const std::string& path, const std::string& prompt, const std::string& layer) {
  const auto model = gf::Model::load(path);
  gf::Trace plain(model, prompt);
  std::printf("%s%s\n", prompt.c_str(), answer(plain).c_str());
  gf::Trace trace = plain.fork(spliced(model, "resid_post" + layer));  // Shares what is computed.
  const bool unchanged = trace.logits().equal(plain.logits());
  std::printf("spliced in after block %s: %s\n", layer.c_str(), unchanged ? "the same, bit for bit" : "changed");
  const at::Tensor acts = trace.read("sae.acts", gf::Positions{{-1}}).flatten();
  for (size_t i = 0; i < kWords.size(); ++i) {
    const auto feature = static_cast<int64_t>(i);
    std::printf("feature%-8s %6.2f   off:%s   at 200:%s\n", kWords[i], acts.select(0, feature).item<double>(),
                answer_with(trace, feature, 0).c_str(), answer_with(trace, feature, 200).c_str());
  }
  int64_t again = 0;
  for (const gf::Work& work : trace.work())
    if (work.node == "blocks." + layer + ".hook_mlp_out") again = work.rows;
  std::printf("positions of block %s computed again: %lld\n", layer.c_str(), static_cast<long long>(again));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "splice_autoencoder <model> [prompt] [layer]\n");
    return 2;
  }
  const auto argument = [&](int i, const char* otherwise) { return std::string(argc > i ? argv[i] : otherwise); };
  try {
    run(argv[1], argument(2, "The capital of France is"), argument(3, "28"));
  } catch (const gf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
