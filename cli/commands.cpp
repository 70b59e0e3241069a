// The one entry of the library of commands that need libtorch.

#include "cli/arguments.h"
#include "cli/session.h"

extern "C" __attribute__((visibility("default"))) int glassformer_run_command(
    const glassformer::cli::EngineCall& call) {
  glassformer::cli::exit_on_interrupt();
  return std::visit([](const auto& arguments) { return glassformer::cli::run(arguments); }, call);
}
