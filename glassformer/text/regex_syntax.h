#pragma once

#include <string>

namespace glassformer::text {

/// An expression of Oniguruma (Ruby's syntax) as PCRE2 with UTF, UCP and MULTILINE means it. `UnsupportedError` names
/// what has no equal there.
std::string translate_regex(const std::string& expression);

}  // namespace glassformer::text
