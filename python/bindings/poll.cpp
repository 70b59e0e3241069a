#include "python/bindings/poll.h"

#include <pybind11/pybind11.h>

#include <chrono>

namespace glassformer {

std::function<void()> python_poll() {
  return [last = std::chrono::steady_clock::now()]() mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - last < std::chrono::milliseconds(20)) return;
    last = now;
    const pybind11::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  };
}

}  // namespace glassformer
