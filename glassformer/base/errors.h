#pragma once
// Every error of Glassformer is one line that says: the file or object, what was found, what was expected, what to do.

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace glassformer {

/// The base of all errors that the library raises on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A file is missing, cut off, or not what it says it is. `what()` begins with the path.
class FileError : public Error {
 public:
  FileError(std::string_view path, std::string_view problem) : Error(std::string(path) + ": " + std::string(problem)) {}
};

/// No node, weight, module, command or token has that name; `what()` names the nearest ones.
class NameError : public Error {
 public:
  using Error::Error;
};

/// A tensor has another shape than the node or region that it is meant for.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// Input that a model can't take: a token out of range, an empty prompt, a text longer than the context, an option out
/// of its range.
class InputError : public Error {
 public:
  using Error::Error;
};

/// Edits were made in an order that leaves their meaning open.
class OrderError : public Error {
 public:
  using Error::Error;
};

/// A value was changed after it stopped being the current one.
class StaleEditError : public Error {
 public:
  using Error::Error;
};

/// A node that the model has, but that this trace can't have.
class UnavailableError : public Error {
 public:
  using Error::Error;
};

/// An architecture, tensor type or feature that Glassformer lacks; `what()` says what is supported.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// Joins the parts into one string with `operator<<` for each.
template <typename... Parts>
std::string str(const Parts&... parts);

/// The `count` candidates nearest to `name` by edit distance, nearest first; fewer where the rest is far off.
std::vector<std::string> nearest_names(std::string_view name, const std::vector<std::string>& candidates,
                                       size_t count = 3);

/// `; nearest: a, b, c`, or an empty string where nothing is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace glassformer

#include <sstream>

template <typename... Parts>
std::string glassformer::str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}
