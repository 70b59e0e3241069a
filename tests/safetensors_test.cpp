#include "glassformer/io/safetensors.h"

#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>

#include "glassformer/base/errors.h"
#include "tests/fuzz/file_builders.h"

using namespace glassformer;

namespace {

std::string entry(const std::string& dtype, const std::string& shape, uint64_t begin, uint64_t end) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[)" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

/// What reading a file with this header and so many bytes of data raises.
template <typename E = FileError>
std::string refusal(const std::string& header, size_t data_bytes) {
  const files::ScratchFolder folder;
  const auto path = folder.write("m.safetensors", files::safetensors(header, std::string(data_bytes, '\1')));
  return folder.error<E>([&] { read_safetensors(MappedFile::open(path)); });
}

std::string refusal_of_file(const std::string& bytes) {
  const files::ScratchFolder folder;
  const auto path = folder.write("m.safetensors", bytes);
  return folder.error<FileError>([&] { read_safetensors(MappedFile::open(path)); });
}

}  // namespace

TEST_CASE("a safetensors file's tensors, in the order of its header") {
  const files::ScratchFolder folder;
  const std::string header = R"({"__metadata__":{"format":"pt"},"z":)" + entry("F32", "[2,3]", 4, 28) + R"(,"a":)" +
                             entry("BF16", "[2]", 0, 4) + R"(,"none":)" + entry("I64", "[0,7]", 4, 4) + R"(,"one":)" +
                             entry("BOOL", "[]", 28, 29) + "}   ";
  const std::vector<float> numbers = {1, 2, 3, 4, 5, 6};
  const auto path = folder.write(
      "m.safetensors", files::safetensors(header, std::string("\0\1\2\3", 4) + files::bytes_of(numbers) + "\1"));
  const std::vector<StoredTensor> tensors = read_safetensors(MappedFile::open(path));
  REQUIRE(tensors.size() == 4);
  CHECK(tensors[0].name == "z");
  CHECK(tensors[0].dtype == DType::kFloat32);
  CHECK(tensors[0].shape == std::vector<int64_t>{2, 3});
  CHECK(tensors[0].bytes == 24);
  CHECK(std::memcmp(tensors[0].data, numbers.data(), 24) == 0);
  CHECK(tensors[1].name == "a");
  CHECK(tensors[1].dtype == DType::kBFloat16);
  CHECK(tensors[1].data[3] == std::byte{3});
  CHECK(tensors[2].bytes == 0);
  CHECK(tensors[2].count() == 0);
  CHECK(tensors[3].shape.empty());
  CHECK(tensors[3].count() == 1);
  CHECK(read_safetensors(MappedFile::open(folder.write("empty.safetensors", files::safetensors("{}", "")))).empty());
}

TEST_CASE("writing into a tensor stays in this process") {
  const files::ScratchFolder folder;
  const auto path =
      folder.write("m.safetensors", files::safetensors(R"({"a":)" + entry("U8", "[3]", 0, 3) + "}", "abc"));
  read_safetensors(MappedFile::open(path))[0].data[0] = std::byte{'z'};
  CHECK(read_safetensors(MappedFile::open(path))[0].data[0] == std::byte{'a'});
}

TEST_CASE("safetensors that are cut off, or longer than their tensors") {
  CHECK(refusal_of_file("abc") ==
        "m.safetensors: has 3 bytes; a safetensors file has at least 8 (incomplete download?)");
  CHECK(refusal_of_file(std::string("\x10\0\0\0\0\0\0\0{}", 10)) ==
        "m.safetensors: the header ends at byte 24, but the file has 10 (incomplete download?)");
  CHECK(refusal_of_file(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10)) ==
        "m.safetensors: is not a safetensors file: it begins with a header length of 18446744073709551615; the most is "
        "100000000");
  const std::string name = "model.layers.3.mlp.up_proj.weight";
  const std::string header = R"({"first":)" + entry("F32", "[10]", 0, 40) + R"(,")" + name + R"(":)" +
                             entry("F32", "[1000,1000]", 40, 4000040) + "}";
  CHECK(refusal(header, 100) == "m.safetensors: tensor '" + name + "' ends at byte " +
                                    std::to_string(8 + header.size() + 4000040) + ", but the file has " +
                                    std::to_string(8 + header.size() + 100) + " (incomplete download?)");
  CHECK(refusal(R"({"a":)" + entry("U8", "[3]", 0, 3) + "}", 5) ==
        "m.safetensors: the last tensor ends at byte 64, but the file has 66");
  CHECK(refusal_of_file("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n") ==
        "m.safetensors: is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
}

TEST_CASE("a safetensors header that is not what it should be") {
  const std::string good = entry("F32", "[2]", 0, 8);
  CHECK(refusal("{\"a\":", 8).starts_with("m.safetensors: the header is not JSON: "));
  CHECK(refusal("", 0).starts_with("m.safetensors: the header is not JSON: "));
  CHECK(refusal(std::string(5000, '['), 0).starts_with("m.safetensors: the header is not JSON: "));
  CHECK(refusal("[]", 0) == "m.safetensors: the header is JSON, but not an object");
  CHECK(refusal("{\"a\xFF\":" + good + "}", 8) == "m.safetensors: the header is not UTF-8");
  CHECK(refusal(R"({"a":)" + good + R"(,"a":)" + good + "}", 8) == "m.safetensors: the header has 'a' twice");
  CHECK(refusal(R"({"a":7})", 0) == "m.safetensors: tensor 'a' is not described by an object");
  CHECK(refusal(R"({"a\n":7})", 0) == "m.safetensors: tensor 'a\\x0a' is not described by an object");
  CHECK(refusal(R"({"__metadata__":[]})", 0) == "m.safetensors: '__metadata__' is not an object");
  CHECK(refusal(R"({"__metadata__":{"n":1}})", 0) == "m.safetensors: '__metadata__' has 'n', which is not a string");
  CHECK(refusal(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8) == "m.safetensors: tensor 'a' has no 'dtype'");
  CHECK(refusal(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8) == "m.safetensors: tensor 'a' has no 'shape'");
  CHECK(refusal(R"({"a":{"dtype":"F32","shape":[2]}})", 8) == "m.safetensors: tensor 'a' has no 'data_offsets'");
  CHECK(refusal(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8) ==
        "m.safetensors: tensor 'a' has 'dtype' twice");
  CHECK(refusal(R"({"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8) ==
        "m.safetensors: tensor 'a' has a 'dtype' that is not a string");
  CHECK(refusal(R"({"a":)" + entry("F32", "2", 0, 8) + "}", 8) ==
        "m.safetensors: tensor 'a' has a 'shape' that is not a list");
  for (const char* shape : {"[-2]", "[2.0]", "[\"2\"]", "[null]"}) {
    CHECK(refusal(R"({"a":)" + entry("F32", shape, 0, 8) + "}", 8) ==
          "m.safetensors: tensor 'a' has a 'shape' with something else than whole numbers from 0");
  }
  CHECK(refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8) ==
        "m.safetensors: tensor 'a' has 3 'data_offsets'; expected 2");
}

TEST_CASE("safetensors offsets, shapes and types that don't fit each other") {
  const std::string first = R"({"a":)" + entry("F32", "[2]", 0, 8);
  CHECK(refusal(first + R"(,"b":)" + entry("F32", "[2]", 12, 20) + "}", 20) ==
        "m.safetensors: tensor 'b' begins at offset 12, but the one before it ends at 8");
  CHECK(refusal(first + R"(,"b":)" + entry("F32", "[2]", 4, 12) + "}", 12) ==
        "m.safetensors: tensor 'b' begins at offset 4, but the one before it ends at 8");
  CHECK(refusal(R"({"a":)" + entry("F32", "[2]", 8, 0) + "}", 8) ==
        "m.safetensors: tensor 'a' ends at offset 0, before it begins at 8");
  CHECK(refusal(R"({"a":)" + entry("F32", "[3]", 0, 8) + "}", 8) ==
        "m.safetensors: tensor 'a' has 8 bytes; F32 of shape [3] needs 12");
  CHECK(refusal(R"({"a":)" + entry("F32", "[4294967296, 4294967296]", 0, 0) + "}", 0) ==
        "m.safetensors: tensor 'a' has the shape [4294967296, 4294967296], too large for any file");
  CHECK(refusal(R"({"a":)" + entry("F32", "[4611686018427387904]", 0, 0) + "}", 0) ==
        "m.safetensors: tensor 'a' has the shape [4611686018427387904], too large for any file");
  CHECK(refusal(R"({"a":)" + entry("F32", "[18446744073709551615]", 0, 0) + "}", 0) ==
        "m.safetensors: tensor 'a' has an axis of size 18446744073709551615");
  CHECK(
      refusal<UnsupportedError>(R"({"a":)" + entry("F8_E4M3", "[8]", 0, 8) + "}", 8) ==
      "m.safetensors: tensor 'a' has the dtype 'F8_E4M3'; supported: F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL");
}

TEST_CASE("files that can't be mapped") {
  const files::ScratchFolder folder;
  const auto error = [&](const std::string& name) {
    return folder.error<FileError>([&] { MappedFile::open(folder.path() + "/" + name); });
  };
  folder.write("empty", "");
  folder.write("sub/file", "x");
  CHECK(error("missing") == "missing: no such file");
  CHECK(error("sub/file/below") == "sub/file/below: no such file");
  CHECK(error("empty") == "empty: is empty (incomplete download?)");
  CHECK(error("sub") == "sub: is a folder, not a file");
  CHECK_THROWS_WITH_AS(MappedFile::open("/dev/null"), "/dev/null: is not a plain file", FileError);
  CHECK_THROWS_AS(MappedFile::open(""), FileError);
  if (::geteuid() != 0) {
    const auto locked = folder.write("locked", "x");
    std::filesystem::permissions(locked, std::filesystem::perms::none);
    CHECK(error("locked") == "locked: can't be read: Permission denied");
  }
  const auto file = MappedFile::open(folder.path() + "/sub/file");
  CHECK(file->bytes().size() == 1);
  CHECK(file->path() == folder.path() + "/sub/file");
}
