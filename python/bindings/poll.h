#pragma once

#include <functional>

namespace glassformer {

/// Lets Ctrl-C stop a long computation: looks for signals every few milliseconds.
std::function<void()> python_poll();

}  // namespace glassformer
