#include "glassformer/io/gguf.h"

#include <doctest/doctest.h>

#include <cstring>

#include "glassformer/base/errors.h"
#include "tests/fuzz/file_builders.h"

using namespace glassformer;

namespace {

GgufFile read(const files::ScratchFolder& folder, const std::string& bytes) {
  return read_gguf(MappedFile::open(folder.write("m.gguf", bytes)));
}

template <typename E = FileError>
std::string refusal(const std::string& bytes) {
  const files::ScratchFolder folder;
  return folder.error<E>([&] { read(folder, bytes); });
}

template <typename E = FileError>
std::string refusal(files::Gguf gguf) {
  return refusal<E>(gguf.bytes());
}

std::string header(uint32_t version, uint64_t tensors, uint64_t entries) {
  std::string bytes = "GGUF";
  files::put(bytes, version);
  files::put(bytes, tensors);
  files::put(bytes, entries);
  return bytes;
}

}  // namespace

TEST_CASE("GGUF metadata of every kind") {
  files::Gguf gguf;
  gguf.number("u8", files::kU8, uint8_t{200})
      .number("i8", files::kI8, int8_t{-3})
      .number("u16", files::kU16, uint16_t{65535});
  gguf.number("i16", files::kI16, int16_t{-9})
      .number("u32", files::kU32, uint32_t{4000000000})
      .number("i32", files::kI32, -7);
  gguf.number("u64", files::kU64, uint64_t{1} << 62).number("i64", files::kI64, int64_t{-5});
  gguf.number("f32", files::kF32, 0.5f).number("f64", files::kF64, 0.1).number("yes", files::kBool, uint8_t{1});
  gguf.text("text", "Ġthe").texts("texts", {"a", "", "b c"}).array<float>("floats", files::kF32, {1.f, 2.5f});
  gguf.array<int16_t>("integers", files::kI16, {1, -2}).array<uint8_t>("flags", files::kBool, {1, 0, 1});
  gguf.array<uint64_t>("none", files::kU64, {});
  for (const uint32_t version : {2u, 3u}) {
    const files::ScratchFolder folder;
    files::Gguf copy = gguf;
    copy.version = version;
    const GgufFile file = read(folder, copy.bytes());
    CHECK(file.version == version);
    CHECK(file.at<int64_t>("u8") == 200);
    CHECK(file.at<int64_t>("i8") == -3);
    CHECK(file.at<int64_t>("u16") == 65535);
    CHECK(file.at<int64_t>("i16") == -9);
    CHECK(file.at<int64_t>("u32") == 4000000000);
    CHECK(file.at<int64_t>("i32") == -7);
    CHECK(file.at<int64_t>("u64") == int64_t{1} << 62);
    CHECK(file.at<int64_t>("i64") == -5);
    CHECK(file.at<double>("f32") == 0.5);
    CHECK(file.at<double>("f64") == 0.1);
    CHECK(file.at<bool>("yes"));
    CHECK(file.at<std::string>("text") == "Ġthe");
    CHECK(file.at<std::vector<std::string>>("texts") == std::vector<std::string>{"a", "", "b c"});
    CHECK(file.at<std::vector<double>>("floats") == std::vector<double>{1, 2.5});
    CHECK(file.at<std::vector<int64_t>>("integers") == std::vector<int64_t>{1, -2});
    CHECK(file.at<std::vector<bool>>("flags") == std::vector<bool>{true, false, true});
    CHECK(file.at<std::vector<int64_t>>("none").empty());
    CHECK(file.tensors.empty());
  }
}

TEST_CASE("GGUF metadata asked for as another kind") {
  const files::ScratchFolder folder;
  files::Gguf gguf;
  gguf.number("heads", files::kU32, uint32_t{9}).number("base", files::kF32, 10000.f).number("part", files::kF32, 0.5f);
  gguf.number("huge", files::kF64, 1e30).text("name", "x").array<float>("whole", files::kF32, {1.f, 2.f});
  const GgufFile file = read(folder, gguf.bytes());
  const double& as_double = file.at<double>("heads");
  CHECK(as_double == 9.0);
  CHECK(&as_double == &file.at<double>("heads"));
  CHECK(file.at<int64_t>("base") == 10000);
  CHECK(file.at<std::vector<int64_t>>("whole") == std::vector<int64_t>{1, 2});
  CHECK(file.get<int64_t>("missing", 7) == 7);
  CHECK(file.get<int64_t>("heads", 7) == 9);
  CHECK(file.get<std::string>("missing", "y") == "y");
  const auto error = [&](const auto& call) { return folder.error<FileError>(call); };
  CHECK(error([&] { file.at<int64_t>("missing"); }) == "m.gguf: metadata 'missing' is missing; expected an integer");
  CHECK(error([&] { file.at<int64_t>("part"); }) == "m.gguf: metadata 'part' is a float; expected an integer");
  CHECK(error([&] { file.at<int64_t>("huge"); }) == "m.gguf: metadata 'huge' is a float; expected an integer");
  CHECK(error([&] { file.at<bool>("heads"); }) == "m.gguf: metadata 'heads' is an integer; expected a boolean");
  CHECK(error([&] { file.get<double>("name", 1); }) == "m.gguf: metadata 'name' is a string; expected a float");
  CHECK(error([&] { file.at<std::vector<std::string>>("name"); }) ==
        "m.gguf: metadata 'name' is a string; expected an array of strings");
}

TEST_CASE("GGUF tensors, with their sizes outermost first") {
  const files::ScratchFolder folder;
  files::Gguf gguf;
  gguf.alignment = 64;
  gguf.number("general.alignment", files::kU32, uint32_t{64});
  gguf.tensor("a", {3, 2}, 0, files::bytes_of<float>({1, 2, 3, 4, 5, 6}))
      .tensor("q", {64, 3}, 3, std::string(6 * 20, 'q'));
  gguf.tensor("scalar", {}, 24, "s").tensor("none", {256, 0}, 12, "");
  const GgufFile file = read(folder, gguf.bytes());
  REQUIRE(file.tensors.size() == 4);
  const StoredTensor &a = file.tensors[0], &q = file.tensors[1];
  CHECK(a.name == "a");
  CHECK(a.shape == std::vector<int64_t>{2, 3});
  CHECK(a.dtype == DType::kFloat32);
  float last = 0;
  std::memcpy(&last, a.data + 20, 4);
  CHECK(last == 6);
  CHECK(q.shape == std::vector<int64_t>{3, 64});
  CHECK(q.dtype == DType::kQ4_1);
  CHECK(q.bytes == 120);
  CHECK(q.data == a.data + 64);
  CHECK(q.data[119] == std::byte{'q'});
  CHECK(file.tensors[2].count() == 1);
  CHECK(file.tensors[2].dtype == DType::kInt8);
  CHECK(file.tensors[3].bytes == 0);
}

TEST_CASE("files that are no GGUF of a known version") {
  CHECK(refusal("GGU") == "m.gguf: is not a GGUF file: it doesn't begin with 'GGUF'");
  CHECK(refusal(std::string(64, 'x')) == "m.gguf: is not a GGUF file: it doesn't begin with 'GGUF'");
  CHECK(refusal("GGUF").starts_with("m.gguf: the version takes 4 bytes at byte 4, but the file has 4"));
  CHECK(refusal<UnsupportedError>(header(1, 0, 0)) == "m.gguf: is GGUF version 1; supported are versions 2 and 3");
  CHECK(refusal<UnsupportedError>(header(4, 0, 0)) == "m.gguf: is GGUF version 4; supported are versions 2 and 3");
  CHECK(refusal<UnsupportedError>(header(0x03000000, 0, 0)) ==
        "m.gguf: is a big-endian GGUF file; only little-endian ones are supported");
  CHECK(refusal("version https://git-lfs.example/spec/v1\n").starts_with("m.gguf: is a Git LFS pointer"));
}

TEST_CASE("GGUF counts and lengths that the file can't hold are refused before any memory is taken") {
  constexpr uint64_t kHuge = ~uint64_t{0};
  CHECK(
      refusal(header(3, kHuge, 0)) ==
      "m.gguf: the number of tensors says 18446744073709551615 items, but only 8 bytes follow (incomplete download?)");
  CHECK(refusal(header(3, 0, 1) + std::string(12, '\0')).find("the number of metadata entries says 1 items") !=
        std::string::npos);
  std::string key = header(3, 0, 1);
  files::put(key, kHuge);
  CHECK(refusal(key + std::string(20, 'k')) ==
        "m.gguf: the name of metadata entry 0 takes 18446744073709551615 bytes at byte 32, but the file has 52 "
        "(incomplete "
        "download?)");
  for (const uint32_t type : {files::kU8, files::kI64, files::kText, files::kBool, files::kF32}) {
    std::string array = header(3, 0, 1);
    files::put(array, uint64_t{1});
    array += "k";
    files::put(array, uint32_t{files::kArray});
    files::put(array, type);
    files::put(array, uint64_t{1} << 61);
    CHECK(refusal(array + std::string(16, '\0')) ==
          "m.gguf: metadata 'k' says 2305843009213693952 items, but only 16 bytes follow (incomplete download?)");
  }
}

TEST_CASE("GGUF metadata that breaks the rules") {
  CHECK(refusal(files::Gguf().text("k", "a").text("k", "b")) == "m.gguf: metadata 'k' is there twice");
  CHECK(refusal(files::Gguf().text("k\xFF", "a")) == "m.gguf: the name of metadata entry 0 is not UTF-8: 'k\\xff'");
  CHECK(refusal(files::Gguf().number("k", 13, uint64_t{0})) == "m.gguf: metadata 'k' has the unknown type 13");
  CHECK(refusal(files::Gguf().number("k", files::kBool, uint8_t{2})) ==
        "m.gguf: metadata 'k' is the boolean 2; expected 0 or 1");
  CHECK(refusal(files::Gguf().number("k", files::kU64, uint64_t{1} << 63)) ==
        "m.gguf: metadata 'k' is 9223372036854775808, more than a signed 64-bit integer holds");
  CHECK(refusal<UnsupportedError>(files::Gguf().array<uint8_t>("k", files::kArray, {})) ==
        "m.gguf: metadata 'k' is an array of arrays; only arrays of plain values are supported");
  CHECK(refusal(files::Gguf().array<uint8_t>("k", 77, {})) ==
        "m.gguf: metadata 'k' is an array of the unknown type 77");
  for (const uint32_t alignment : {0u, 3u, 48u}) {
    CHECK(refusal(files::Gguf().number("general.alignment", files::kU32, alignment)) ==
          "m.gguf: metadata 'general.alignment' is " + std::to_string(alignment) + "; expected a power of two");
  }
  CHECK(refusal(files::Gguf().text("general.alignment", "32")) ==
        "m.gguf: metadata 'general.alignment' is no integer; expected a power of two");
}

TEST_CASE("GGUF tensors that break the rules") {
  const std::string four(16, '\0');
  CHECK(refusal(files::Gguf().tensor("t", {4}, 0, four).tensor("t", {4}, 0, four)) ==
        "m.gguf: tensor 't' is there twice");
  CHECK(refusal(files::Gguf().tensor("t", {1, 1, 1, 1, 1}, 0, four)) ==
        "m.gguf: tensor 't' has 5 axes; GGUF has at most 4");
  CHECK(refusal(files::Gguf().tensor("t", {48, 2}, 2, four)) ==
        "m.gguf: tensor 't' has rows of 48 values; Q4_0 needs a multiple of 32");
  CHECK(refusal(files::Gguf().tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, four)) ==
        "m.gguf: tensor 't' has the shape [1099511627776, 1099511627776], too large for any file");
  CHECK(refusal(files::Gguf().tensor("t", {~uint64_t{0}}, 0, four)) ==
        "m.gguf: tensor 't' has an axis of size 18446744073709551615");
  CHECK(refusal(files::Gguf().tensor("t", {4}, 0, four, 8)) ==
        "m.gguf: tensor 't' is at offset 8, not a multiple of the alignment 32");
  CHECK(refusal(files::Gguf().tensor("t", {4}, 0, four, 0x7FFFFFFFFFFFFFE0)).find("ends at byte") != std::string::npos);
  CHECK(refusal(files::Gguf().tensor("a", {16}, 0, four + four + four + four).tensor("b", {4}, 0, four, 32)) ==
        "m.gguf: tensors 'a' and 'b' overlap");
  files::Gguf cut;
  const std::string bytes = cut.tensor("blk.0.attn_q.weight", {64}, 0, std::string(256, '\0')).bytes();
  CHECK(refusal(bytes.substr(0, bytes.size() - 100)) ==
        "m.gguf: tensor 'blk.0.attn_q.weight' ends at byte 352, but the file has 252 (incomplete download?)");
}

TEST_CASE("an offset that wraps around the end of all memory") {
  files::Gguf gguf;
  std::string bytes = gguf.tensor("t", {4}, 0, std::string(32, '\0')).bytes();
  const uint64_t offset = ~uint64_t{0} - 31;
  std::memcpy(bytes.data() + gguf.fields()[gguf.fields().size() - 4].position, &offset, sizeof(offset));
  CHECK(refusal(bytes) == "m.gguf: tensor 't' is at offset 18446744073709551584, which no file has");
}

TEST_CASE("tensor types that Glassformer lacks are named") {
  const auto refused = [](uint32_t type) {
    return refusal<UnsupportedError>(files::Gguf().tensor("t", {256}, type, std::string(512, '\0')));
  };
  const std::string supported =
      "; supported: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, I8, I16, "
      "I32, "
      "I64, F64, BF16";
  CHECK(refused(16) == "m.gguf: tensor 't' is stored as IQ2_XXS" + supported);
  CHECK(refused(15) == "m.gguf: tensor 't' is stored as Q8_K" + supported);
  CHECK(refused(39) == "m.gguf: tensor 't' is stored as MXFP4" + supported);
  CHECK(refused(99) == "m.gguf: tensor 't' is stored as type 99" + supported);
}
