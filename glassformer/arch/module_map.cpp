#include "glassformer/arch/module_map.h"

#include <array>
#include <utility>

namespace glassformer {

const char* name_of(ModulePart part) {
  constexpr std::array kNames = {"model",
                                 "decoder",
                                 "embed",
                                 "pos_embed",
                                 "embed_dropout",
                                 "rotary",
                                 "blocks",
                                 "block",
                                 "attn_norm",
                                 "attention",
                                 "q",
                                 "k",
                                 "v",
                                 "qkv",
                                 "o",
                                 "attn_dropout",
                                 "attn_out_dropout",
                                 "mlp_norm",
                                 "mlp",
                                 "mlp_in",
                                 "mlp_gate",
                                 "activation",
                                 "mlp_out",
                                 "mlp_dropout",
                                 "final_norm",
                                 "unembed"};
  static_assert(kNames.size() == static_cast<size_t>(ModulePart::kUnembed) + 1);
  return kNames[static_cast<size_t>(part)];
}

std::string activation_class(const std::string& name) {
  constexpr std::array<std::pair<const char*, const char*>, 11> kClasses = {{
      {"relu", "ReLU"},
      {"relu2", "ReLUSquaredActivation"},
      {"gelu", "GELUActivation"},
      {"gelu_new", "NewGELUActivation"},
      {"gelu_pytorch_tanh", "GELUTanh"},
      {"gelu_fast", "FastGELUActivation"},
      {"silu", "SiLUActivation"},
      {"swish", "SiLU"},
      {"tanh", "Tanh"},
      {"quick_gelu", "QuickGELUActivation"},
      {"xielu", "XIELUActivation"},
  }};
  for (const auto& [candidate, class_name] : kClasses)
    if (name == candidate) return class_name;
  return {};
}

}  // namespace glassformer
