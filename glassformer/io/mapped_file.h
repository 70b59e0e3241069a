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
  /// Copies `bytes` from `offset` on to `to`, as they are on disk: no page of the map becomes memory in use, and what
  /// was written into the map is not there. `FileError` where the file has become shorter or can't be read.
  void read(size_t offset, std::span<std::byte> to) const;

 private:
  MappedFile(std::string path, std::span<std::byte> bytes, int descriptor)
      : path_(std::move(path)), bytes_(bytes), descriptor_(descriptor) {}

  std::string path_;
  std::span<std::byte> bytes_;
  int descriptor_;
};

}  // namespace glassformer
