// Generates while steering. The steering vector is the difference between the residual streams of two prompts before
// one block, at their last positions; at every step a hook adds a multiple of it to the stream of the text that is
// generated. Multiple 0 is the plain text.
//   steer_generation <model> [prompt] [towards] [away from] [layer]

#include <cstdio>
#include <memory>
#include <string>

#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/trace/generate.h"

namespace gf = glassformer;

namespace {

using ModelPointer = std::shared_ptr<const gf::Model>;

at::Tensor last_residual(const ModelPointer& model, const std::string& text, const std::string& node) {
  gf::Trace trace(model, text);
  return trace.read(node, gf::Positions{{-1}});  // batch 1 d_model
}

std::string continued(const ModelPointer& model, const std::string& prompt, const std::string& node,
                      const at::Tensor& added) {
  gf::Trace trace(model, prompt);
  gf::GenerateOptions options;
  options.max_new_tokens = 24;
  options.hooks = {{node, [&](const at::Tensor& value, const gf::HookCall&) { return value.add(added); }, {}}};
  return model->tokenizer().decode(gf::generate({&trace}, options).front().ids);
}

void run(const std::string& path, const std::string& prompt, const std::string& towards, const std::string& away,
         const std::string& layer) {
  const auto model = gf::Model::load(path);
  const std::string node = "resid_pre" + layer;
  const at::Tensor vector = last_residual(model, towards, node).sub(last_residual(model, away, node));
  std::printf("%s: towards '%s', away from '%s'; the vector's length is %.2f\n", node.c_str(), towards.c_str(),
              away.c_str(), vector.norm().item<double>());
  for (const double multiple : {-2.0, -1.0, 0.0, 1.0, 2.0}) {
    const std::string text = continued(model, prompt, node, vector.mul(multiple));
    std::printf("\n%+.0f: %s%s\n", multiple, prompt.c_str(), text.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "steer_generation <model> [prompt] [towards] [away from] [layer]\n");
    return 2;
  }
  const auto argument = [&](int i, const char* otherwise) { return std::string(argc > i ? argv[i] : otherwise); };
  try {
    run(argv[1], argument(2, "I think that you are"), argument(3, "I love you"), argument(4, "I hate you"),
        argument(5, "10"));
  } catch (const gf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
