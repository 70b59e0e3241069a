#pragma once
// What all commands share in how they talk to the terminal and to files.

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace glassformer::cli {

using Json = nlohmann::ordered_json;

inline constexpr int kSuccess = 0, kFailure = 1, kWrongInput = 2, kInterrupted = 130;

/// Where standard output goes.
struct Screen {
  bool terminal = false;
  bool colour = false;
  int width = 100;
};
const Screen& screen();

/// Writes to standard output.
void print(std::string_view text);
/// Lists of plain values stand on one line; bytes that are no UTF-8 are replaced, and what is no number is null.
void print_json(const Json& value);
std::string bold(std::string_view text);

/// Raises `FileError` where `path` could not be written, without writing.
void check_writable(const std::string& path);
/// Replaces the file's content as a whole, or leaves it as it was. Raises `FileError`.
void write_file(const std::string& path, std::string_view content);

}  // namespace glassformer::cli
