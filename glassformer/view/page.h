#pragma once

#include <string>

#include "glassformer/analysis/explanation.h"

namespace glassformer {

/// One HTML page that shows the explanation to someone who has never seen the project. It holds the text of `to_json`
/// and draws from that alone; styles and script are inside, and it asks the network for nothing.
std::string render_page(const Explanation& explanation);

}  // namespace glassformer
