#pragma once
// One line for each architecture; the data is in the file of that name.

#include "glassformer/arch/architecture.h"

namespace glassformer::models {

Architecture gpt2();
Architecture llama();
Architecture transformer_lens();

}  // namespace glassformer::models
