#include "glassformer/base/version.h"
#include "python/bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.attr("__version__") = glassformer::kVersion;
  glassformer::bind_errors(module);
  glassformer::bind_io(module);
  glassformer::bind_text(module);
  glassformer::bind_model(module);
  glassformer::bind_extend(module);
  glassformer::bind_trace(module);
  glassformer::bind_generate(module);
  glassformer::bind_analysis(module);
  glassformer::bind_factored(module);
  glassformer::bind_steps(module);
  glassformer::bind_residual(module);
  glassformer::bind_losses(module);
  glassformer::bind_nnsight(module);
}
