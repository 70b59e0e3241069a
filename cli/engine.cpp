#include "cli/engine.h"

#include <dlfcn.h>

#include <stdexcept>

namespace glassformer::cli {

int run_in_engine(const EngineCall& call) {
  // Found through the program's RUNPATH: beside it, or in ../lib. Stays loaded until the end.
  void* library = dlopen("libglassformer_commands.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("the engine can't be loaded: ") + dlerror());
  const auto entry = reinterpret_cast<int (*)(const EngineCall&)>(dlsym(library, "glassformer_run_command"));
  if (!entry) throw std::runtime_error(std::string("the engine is of another version: ") + dlerror());
  return entry(call);
}

}  // namespace glassformer::cli
