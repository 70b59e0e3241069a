// Which heads look back, what an induction head copies and whom it listens to, and which heads tell the names in two
// sentences apart: processed weights, factored matrices, composition scores, the parts of the residual stream,
// patching.
//   circuits <model> [text] [text with one other token]

#include "glassformer/analysis/circuits.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/real.h>
#include <ATen/ops/stack.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "glassformer/analysis/decomposition.h"
#include "glassformer/analysis/head_detection.h"
#include "glassformer/analysis/losses.h"
#include "glassformer/analysis/patching.h"
#include "glassformer/analysis/weight_processing.h"
#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"

namespace gf = glassformer;

namespace {

constexpr const char* kWords = " river copper window seven garden letter silver morning engine orange";

struct Head {
  int64_t layer, number;
};

double number(const at::Tensor& one) { return one.item<double>(); }

std::vector<int64_t> largest(const at::Tensor& numbers, int64_t count) {
  std::vector<int64_t> places;
  for (const at::Tensor& place : std::get<1>(numbers.flatten().topk(count)).unbind())
    places.push_back(place.item<int64_t>());
  return places;
}

// The largest of `layer head`, in a line; the first of them.
Head print_heads(const char* what, const at::Tensor& scores) {
  const auto head = [&](int64_t place) { return Head{place / scores.size(1), place % scores.size(1)}; };
  const std::vector<int64_t> places = largest(scores, 4);
  std::printf("%-28s", what);
  for (const int64_t place : places)
    std::printf("  %2d.%d %+.2f", int(head(place).layer), int(head(place).number), number(scores.flatten()[place]));
  std::printf("\n");
  return head(places.front());
}

void process(const gf::Model& given, const gf::Model& model, const std::string& text) {
  gf::Trace before(given.shared_from_this(), text), after(model.shared_from_this(), text);
  const at::Tensor change = gf::log_probabilities(after.logits()) - gf::log_probabilities(before.logits());
  std::printf("Weights processed: norms folded into what reads them, logits centred\n");
  std::printf("largest change of a log-probability %.3f; mean logit before %.2f, after %.2f\n",
              number(change.abs().max()), number(before.logits().mean()), std::abs(number(after.logits().mean())));
}

// Which part of each head's attention lies where `expected` has ones: layer head.
at::Tensor attention_shares(gf::Trace& trace, const at::Tensor& expected) {
  std::vector<at::Tensor> layers;
  for (int64_t layer = 0; layer < trace.model().config().n_layers; ++layer)
    layers.push_back(gf::attention_share(trace.read("pattern" + std::to_string(layer))[0], expected));
  return at::stack(layers);
}

// From the weights of one head alone; no matrix of d_model by d_model, let alone d_vocab by d_vocab, is laid out.
void read_circuits(const gf::Model& model, Head head) {
  const gf::FactoredMatrix ov = gf::ov_circuits(model, head.layer).index({head.number});
  const gf::FactoredMatrix qk = gf::qk_circuits(model, head.layer).index({head.number});
  const at::Tensor embed = model.weights().get("embed.weight"), unembed = model.weights().get("unembed.weight").t();
  const at::Tensor values = ov.after(embed).times(unembed).eigenvalues();
  std::printf("\nWhat %d.%d does with what it sees (OV), of rank %d\n", int(head.layer), int(head.number),
              int(ov.middle()));
  std::printf("copying: sum of eigenvalues over sum of their sizes %+.2f\n",
              number(at::real(values).sum() / values.abs().sum()));
  std::printf("singular values");
  for (const at::Tensor& value : ov.svd().S.slice(0, 0, 5).unbind()) std::printf(" %.2f", number(value));
  std::printf("\n");
  std::vector<at::Tensor> scores;
  for (int64_t layer = 0; layer < head.layer; ++layer)
    scores.push_back(gf::composition_scores(gf::ov_circuits(model, layer), qk.transposed()));
  std::printf("\nWhose output it reads as keys: composition scores, %.2f in the mean\n",
              number(at::stack(scores).mean()));
  print_heads("earlier heads", at::stack(scores));
}

struct Difference {
  int64_t answer, versus;
};

// The tokens in which two sentences differ.
Difference difference(gf::Trace& trace, gf::Trace& other) {
  if (trace.length() != other.length()) throw gf::InputError("the sentences have different numbers of tokens");
  const at::Tensor ours = trace.tokens()[0], theirs = other.tokens()[0], places = ours.ne(theirs).nonzero();
  if (places.size(0) != 1) throw gf::InputError("expected sentences that differ in one token");
  const at::Tensor place = places[0][0];
  return {theirs[place].item<int64_t>(), ours[place].item<int64_t>()};
}

// The logit of the answer minus that of the other token, as the sum of what each part writes at the last position. The
// head that writes most of it.
Head attribute(gf::Trace& trace, Difference tokens) {
  const gf::Positions last{{-1}};
  const at::Tensor unembed = trace.model().weights().get("unembed.weight");
  const gf::Decomposition stream = gf::decompose_stream(trace, {.heads = true, .positions = last});
  const at::Tensor logits = gf::logit_attributions(stream.parts.stack(), unembed[tokens.answer], unembed[tokens.versus],
                                                   gf::reading_norm(trace, {}, last))
                                .flatten();  // part
  std::printf("all parts %+.2f; the largest:\n", number(logits.sum()));
  for (const int64_t part : largest(logits.abs(), 5))
    std::printf("  %-8s %+.2f\n", stream.labels[static_cast<size_t>(part)].name.c_str(), number(logits[part]));
  for (const int64_t part : largest(logits.abs(), logits.numel()))
    if (const gf::PartLabel& label = stream.labels[static_cast<size_t>(part)]; label.kind == "head")
      return {label.layer, label.index};
  return {};
}

// Whether a head writes the words that it sees in the stream, or writes against them.
void judge_copying(const gf::Model& model, Head head) {
  gf::Trace trace(model.shared_from_this(), kWords);
  const at::Tensor stream = trace.read("blocks." + std::to_string(head.layer) + ".ln1.hook_out")[0];  // word d_model
  const at::Tensor unembed = model.weights().get("unembed.weight").t();
  const gf::FactoredMatrix ov = gf::ov_circuits(model, head.layer).index({head.number});
  const at::Tensor written = ov.after(stream).times(unembed).product();  // word d_vocab
  const at::Tensor ranks = written.gt(written.gather(1, trace.tokens()[0].unsqueeze(1))).sum(1);
  const auto count = [](const at::Tensor& which) { return int(which.sum().item<int64_t>()); };
  std::printf("\nWhat %d.%d writes for each of ten words that it sees: that word is\n", int(head.layer),
              int(head.number));
  std::printf("among the ten likeliest tokens %d times, among the ten unlikeliest %d times\n", count(ranks.lt(10)),
              count(ranks.ge(model.config().d_vocab - 10)));
}

// Each head's output at all positions from the one sentence in the other.
void patch_heads(gf::Trace& clean, gf::Trace& corrupted, const gf::Metric& metric) {
  const gf::ModelConfig& config = clean.model().config();
  const auto value = [&](gf::Trace& of) { return number(metric.value(of.read("logits", metric.positions))); };
  const double best = value(clean), worst = value(corrupted);
  at::Tensor recovered = clean.logits().new_zeros({config.n_layers, config.n_heads});
  const auto patch = [&](int64_t i) {
    const std::string node = "z" + std::to_string(i / config.n_heads);
    const int64_t head = i % config.n_heads;
    return gf::Patch{node, clean.read(node).select(2, head), gf::Region().at("head", head)};
  };
  const auto take = [&](int64_t i, const std::shared_ptr<gf::PatchedRun>& run) {
    const double found = number(metric.value(run->logits(metric.positions)));
    recovered.flatten()[i] = (found - worst) / (best - worst);
  };
  gf::sweep_patches(corrupted, recovered.numel(), patch, take, metric.positions);
  print_heads("heads that bring it back", recovered);
  print_heads("heads that work against it", -recovered);
}

void run(const std::string& path, const std::string& text, const std::string& other_text) {
  const auto given = gf::Model::load(path), model = gf::process_weights(*given);
  process(*given, *model, text);

  gf::Trace repeated(model, std::string(kWords) + kWords);
  std::printf("\nHeads that look back, on ten words twice: part of their attention\n");
  print_heads("at the token before", attention_shares(repeated, gf::previous_token_pattern(repeated.length())));
  const Head induction =
      print_heads("behind the same token", attention_shares(repeated, gf::induction_pattern(repeated.tokens())));
  read_circuits(*model, induction);

  gf::Trace clean(model, text), corrupted(model, other_text);
  const Difference tokens = difference(clean, corrupted);
  const auto shown = [&](int64_t id) { return model->tokenizer().decode(std::array{id}); };
  std::printf("\n%s: logit of '%s' minus '%s'\n", text.c_str(), shown(tokens.answer).c_str(),
              shown(tokens.versus).c_str());
  judge_copying(*model, attribute(clean, tokens));
  std::printf("\nPatched into: %s\n", other_text.c_str());
  patch_heads(clean, corrupted, gf::logit_difference(tokens.answer, tokens.versus));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "circuits <model> [text] [text with one other token]\n");
    return 2;
  }
  try {
    run(argv[1], argc > 2 ? argv[2] : "When Kate and James met at the station, James gave the ticket to",
        argc > 3 ? argv[3] : "When Kate and James met at the station, Kate gave the ticket to");
  } catch (const gf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
