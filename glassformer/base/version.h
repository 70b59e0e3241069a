#pragma once

namespace glassformer {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace glassformer
