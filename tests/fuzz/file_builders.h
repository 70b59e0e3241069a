#pragma once
// Small model files, made in memory: for the tests of the readers, and as seeds of the fuzzer.

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace glassformer::files {

template <typename T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

/// A safetensors file with exactly this header.
inline std::string safetensors(const std::string& header, const std::string& data) {
  std::string bytes;
  put(bytes, uint64_t{header.size()});
  return bytes + header + data;
}

// The numbers of GGUF's value types.
enum : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kText, kArray, kU64, kI64, kF64 };

/// Writes a GGUF file piece by piece, and remembers where its numbers lie.
class Gguf {
 public:
  struct Field {
    size_t position;
    size_t size;
  };

  template <typename T>
  Gguf& number(const std::string& key, uint32_t type, T value) {
    begin(key, type);
    field(metadata_, value);
    return *this;
  }

  Gguf& text(const std::string& key, const std::string& value) {
    begin(key, kText);
    put_text(metadata_, value);
    return *this;
  }

  template <typename T>
  Gguf& array(const std::string& key, uint32_t type, const std::vector<T>& values) {
    begin_array(key, type, values.size());
    for (const T value : values) put(metadata_, value);
    return *this;
  }

  Gguf& texts(const std::string& key, const std::vector<std::string>& values) {
    begin_array(key, kText, values.size());
    for (const std::string& value : values) put_text(metadata_, value);
    return *this;
  }

  /// `dims` as GGUF has them: innermost first. Without `offset`, the tensor follows the one before it.
  Gguf& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, const std::string& data,
               int64_t offset = -1) {
    tensors_.push_back({name, std::move(dims), type, offset < 0 ? data_.size() : static_cast<uint64_t>(offset)});
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }

  std::string bytes() {
    std::string header = "GGUF";
    put(header, version);
    put(header, uint64_t{tensors_.size()});
    put(header, entries_);
    std::string table;
    const size_t metadata_fields = fields_.size();
    for (const Tensor& entry : tensors_) {
      put_text(table, entry.name);
      field(table, static_cast<uint32_t>(entry.dims.size()));
      for (const uint64_t size : entry.dims) field(table, size);
      field(table, entry.type);
      field(table, entry.offset);
    }
    for (size_t i = 0; i < fields_.size(); ++i) {
      fields_[i].position += header.size() + (i < metadata_fields ? 0 : metadata_.size());
    }
    fields_.insert(fields_.end(), {{4, 4}, {8, 8}, {16, 8}});
    std::string file = header + metadata_ + table;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_;
  }

  /// Where counts, lengths, types and offsets are in what `bytes` returned.
  const std::vector<Field>& fields() const { return fields_; }

  uint32_t version = 3;
  size_t alignment = 32;

 private:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;
    uint32_t type;
    uint64_t offset;
  };

  template <typename T>
  void field(std::string& bytes, T value) {
    fields_.push_back({bytes.size(), sizeof(value)});
    put(bytes, value);
  }

  void put_text(std::string& bytes, const std::string& value) {
    field(bytes, uint64_t{value.size()});
    bytes += value;
  }

  void begin(const std::string& key, uint32_t type) {
    ++entries_;
    put_text(metadata_, key);
    field(metadata_, type);
  }

  void begin_array(const std::string& key, uint32_t type, uint64_t count) {
    begin(key, kArray);
    field(metadata_, type);
    field(metadata_, count);
  }

  std::string metadata_, data_;
  uint64_t entries_ = 0;
  std::vector<Tensor> tensors_;
  std::vector<Field> fields_;
};

/// A folder of its own that goes away at the end.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "glassformer-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no scratch folder: " + name);
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string path() const { return path_.string(); }

  /// What `call` raises as an `E`, without this folder's path; empty where it raises nothing.
  template <typename E, typename Call>
  std::string error(const Call& call) const {
    try {
      call();
    } catch (const E& raised) {
      std::string text = raised.what();
      const std::string prefix = path() + "/";
      for (size_t at = text.find(prefix); at != text.npos; at = text.find(prefix)) text.erase(at, prefix.size());
      return text;
    }
    return "";
  }

  /// Writes a file (and the folders above it), and returns its path.
  std::string write(const std::string& name, const std::string& bytes) const {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::filesystem::remove(path);  // Some file systems flush a file that is truncated and written anew.
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace glassformer::files
