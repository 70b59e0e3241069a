#include "cli/output.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "glassformer/base/errors.h"

namespace glassformer::cli {
namespace {

namespace fs = std::filesystem;

std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

void write(const Json& value, const std::string& indent, std::string& out) {
  if (std::all_of(value.begin(), value.end(), [](const Json& child) { return child.is_primitive(); })) {
    out += dump(value);
    return;
  }
  const std::string inner = indent + ' ';
  const char* separator = "\n";
  out += value.is_object() ? '{' : '[';
  for (const auto& [key, child] : value.items()) {
    out += separator + inner;
    if (value.is_object()) out += dump(key) + ": ";
    write(child, inner, out);
    separator = ",\n";
  }
  out += '\n' + indent + (value.is_object() ? '}' : ']');
}

Screen look() {
  constexpr int kLeastWidth = 60;
  Screen found;
  found.terminal = isatty(STDOUT_FILENO) != 0;
  if (!found.terminal) return found;
  const char* no_colour = std::getenv("NO_COLOR");
  const char* kind = std::getenv("TERM");
  found.colour = !(no_colour && *no_colour) && !(kind && std::string_view(kind) == "dumb");
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    found.width = std::max<int>(size.ws_col, kLeastWidth);
  }
  return found;
}

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw FileError(path, std::string(what) + ": " + std::strerror(errno));
}

// Follows links, so that a link is written through and stays.
fs::path resolved(const std::string& path) {
  std::error_code error;
  const fs::path target = fs::weakly_canonical(path, error);
  return error ? fs::path(path) : target;
}

// A device or a pipe: written as it is.
bool is_special(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

bool write_all(int file, std::string_view content) {
  while (!content.empty()) {
    const ssize_t count = ::write(file, content.data(), content.size());
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) content.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

// Ctrl-C waits while a file is half written.
class Uninterrupted {
 public:
  Uninterrupted() : before_(std::signal(SIGINT, SIG_IGN)) {}
  ~Uninterrupted() { std::signal(SIGINT, before_); }
  Uninterrupted(const Uninterrupted&) = delete;

 private:
  void (*before_)(int);
};

mode_t mode_of(const fs::path& path) {
  struct stat found {};
  return stat(path.c_str(), &found) == 0 ? found.st_mode & 0777 : 0;
}

}  // namespace

const Screen& screen() {
  static const Screen found = look();
  return found;
}

void print(std::string_view text) { std::cout << text; }

void print_json(const Json& value) {
  std::string text;
  write(value, "", text);
  print(text + '\n');
}

std::string bold(std::string_view text) {
  return screen().colour ? "\x1b[1m" + std::string(text) + "\x1b[0m" : std::string(text);
}

void check_writable(const std::string& path) {
  if (path.empty()) throw FileError("''", "is no file name");
  const fs::path target = resolved(path), folder = target.has_parent_path() ? target.parent_path() : ".";
  std::error_code error;
  if (fs::is_directory(target, error)) throw FileError(path, "is a folder; expected a file name");
  if (!fs::is_directory(folder, error))
    throw FileError(path, "can't be written: there is no folder " + folder.string());
  if (is_special(target)) {
    if (access(target.c_str(), W_OK) != 0) fail(path, "can't be written");
  } else if (access(folder.c_str(), W_OK) != 0) {
    fail(path, "can't be written");
  }
}

void write_file(const std::string& path, std::string_view content) {
  const fs::path target = resolved(path);
  const bool direct = is_special(target);
  const std::string place = direct ? target.string() : target.string() + ".part" + std::to_string(getpid());
  const Uninterrupted guard;
  const int file = open(place.c_str(), direct ? O_WRONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) fail(path, "can't be written");
  bool good = write_all(file, content);
  if (good && !direct) {
    const mode_t mode = mode_of(target);
    if (mode != 0) fchmod(file, mode);
  }
  good = close(file) == 0 && good;
  if (direct ? good : good && std::rename(place.c_str(), target.c_str()) == 0) return;
  const int reason = errno;
  if (!direct) unlink(place.c_str());
  errno = reason;
  fail(path, "can't be written");
}

}  // namespace glassformer::cli
