// Reads the residual stream before each block and prints how long its vectors are.
//   read_residual <model> [text]

#include <cstdio>
#include <string>

#include "glassformer/base/errors.h"
#include "glassformer/trace/trace.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "read_residual <model> [text]\n");
    return 2;
  }
  try {
    const auto model = glassformer::Model::load(argv[1]);
    glassformer::Trace trace(model, argc > 2 ? argv[2] : "The capital of France is");
    std::printf("mean length of the residual stream's vectors, %lld tokens\n", static_cast<long long>(trace.length()));
    for (int64_t layer = 0; layer < model->config().n_layers; ++layer) {
      const at::Tensor residual = trace.read("resid_pre" + std::to_string(layer));  // batch pos d_model
      std::printf("layer %2lld  %.3f\n", static_cast<long long>(layer), residual.norm(2, -1).mean().item<double>());
    }
  } catch (const glassformer::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
