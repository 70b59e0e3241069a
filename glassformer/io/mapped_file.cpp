#include "glassformer/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

[[noreturn]] void fail(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR) throw FileError(path, "no such file");
  throw FileError(path, std::string("can't be read: ") + std::strerror(error));
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) throw FileError("''", "not a file name");
  // Without O_NONBLOCK, opening a named pipe waits for a writer.
  Descriptor descriptor{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (descriptor.number < 0) fail(path, errno);
  struct stat status {};
  if (::fstat(descriptor.number, &status) != 0) fail(path, errno);
  if (S_ISDIR(status.st_mode)) throw FileError(path, "is a folder, not a file");
  if (!S_ISREG(status.st_mode)) throw FileError(path, "is not a plain file");
  if (status.st_size == 0) throw FileError(path, "is empty (incomplete download?)");
  const auto size = static_cast<size_t>(status.st_size);
  // No reserve: a private writable map would otherwise count as that much memory in use.
  void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor.number, 0);
  if (start == MAP_FAILED) fail(path, errno);
  const std::span<std::byte> bytes(static_cast<std::byte*>(start), size);
  try {
    const std::shared_ptr<MappedFile> file(new MappedFile(path, bytes, descriptor.number));
    descriptor.number = -1;  // The file's now.
    return file;
  } catch (...) {
    ::munmap(start, size);
    throw;
  }
}

MappedFile::~MappedFile() {
  ::munmap(bytes_.data(), bytes_.size());
  ::close(descriptor_);
}

void MappedFile::read(size_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t n_read = ::pread(descriptor_, to.data(), to.size(), static_cast<off_t>(offset));
    if (n_read < 0 && errno == EINTR) continue;
    if (n_read < 0) fail(path_, errno);
    if (n_read == 0) throw FileError(path_, "has become shorter since it was opened");
    to = to.subspan(static_cast<size_t>(n_read));
    offset += static_cast<size_t>(n_read);
  }
}

}  // namespace glassformer
