#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace glassformer {

/// A whole file in memory, mapped private and writable: pages load when they are touched, and writes stay in this
/// process.
class MappedFile {
 public:
  /// Maps `path`. Raises `FileError` where it is missing, unreadable, empty or not a plain file.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  MappedFile(std::string path, std::span<std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<std::byte> bytes_;
};

}  // namespace glassformer
