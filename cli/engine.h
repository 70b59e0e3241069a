#pragma once

#include "cli/arguments.h"

namespace glassformer::cli {

/// Loads the commands that need libtorch, and runs one.
int run_in_engine(const EngineCall& call);

}  // namespace glassformer::cli
