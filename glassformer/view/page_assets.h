#pragma once
// The files of view/assets as text; embed.cmake writes their definitions at build time.

#include <string_view>

namespace glassformer {

extern const std::string_view kPageHtml;
extern const std::string_view kPageCss;
extern const std::string_view kPartsJs;
extern const std::string_view kPageJs;

}  // namespace glassformer
