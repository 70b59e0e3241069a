// Feeds damaged files to the readers: each must load, or be refused with a glassformer::Error that is one line of
// UTF-8. `fuzz_files [files per format] [seed]`; the same arguments give the same files.

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>

#include "glassformer/base/errors.h"
#include "glassformer/io/checks.h"
#include "glassformer/io/model_files.h"
#include "glassformer/io/quantised.h"
#include "glassformer/io/safetensors.h"
#include "tests/fuzz/file_builders.h"

namespace glassformer {
namespace {

using Random = std::mt19937_64;

uint64_t below(Random& random, uint64_t limit) { return limit == 0 ? 0 : random() % limit; }

std::string random_bytes(Random& random, size_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

/// A file to damage, and where its numbers are.
struct Seed {
  std::string bytes;
  std::vector<files::Gguf::Field> fields;
  bool json = false;  // Whether numbers also stand as text.
};

constexpr uint64_t kInteresting[] = {
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    257,
    1000,
    4096,
    65535,
    65536,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x100000000,
    0x3FFFFFFFFFFFFFFF,
    0x4000000000000000,
    0x7FFFFFFFFFFFFFE0,
    0x7FFFFFFFFFFFFFFF,
    0x8000000000000000,
    0xFFFFFFFFFFFFFFE0,
    0xFFFFFFFFFFFFFFF8,
    0xFFFFFFFFFFFFFFFF,
};

uint64_t interesting(Random& random) {
  const uint64_t value = kInteresting[below(random, std::size(kInteresting))];
  return random() % 8 == 0 ? value * (1 + below(random, 300)) : value;
}

void set_field(Random& random, const Seed& seed, std::string& bytes) {
  if (seed.fields.empty()) return;
  const auto field = seed.fields[below(random, seed.fields.size())];
  if (field.position + field.size > bytes.size()) return;
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + field.position, field.size);
  value = random() % 2 ? interesting(random) : value + below(random, 65) - 32;
  std::memcpy(bytes.data() + field.position, &value, field.size);
}

/// The `step`th of all ways to put one interesting number into one field.
std::string with_value(const Seed& seed, size_t step) {
  const auto field = seed.fields[step / std::size(kInteresting) % seed.fields.size()];
  std::string bytes = seed.bytes;
  std::memcpy(bytes.data() + field.position, &kInteresting[step % std::size(kInteresting)], field.size);
  return bytes;
}

void set_decimal(Random& random, std::string& bytes) {
  const size_t begin = bytes.find_first_of("0123456789", below(random, bytes.size()));
  if (begin == bytes.npos) return;
  const size_t end = std::min(bytes.find_first_not_of("0123456789", begin), bytes.size());
  bytes.replace(begin, end - begin, std::to_string(interesting(random)));
}

void swap_token(Random& random, std::string& bytes) {
  constexpr const char* kTokens[] = {"null",    "true",        "{}",      "[]", "\"\"", "-1",  "1.5", "1e400",
                                     "\"F32\"", "\"F8_E4M3\"", "{",       "}",  "[",    "]",   ",",   ":",
                                     "\"",      "\\u0000",     "\\ud800", "\n", "\xFF", "../x"};
  const std::string token = kTokens[below(random, std::size(kTokens))];
  bytes.replace(below(random, bytes.size()), below(random, 6), token);
}

void mutate_once(Random& random, const Seed& seed, std::string& bytes) {
  if (bytes.empty()) return;
  // Most of a file is values, where damage changes nothing: half of the places are near the front.
  const size_t reach = random() % 2 ? bytes.size() : std::min<size_t>(bytes.size(), 600);
  const size_t place = below(random, reach);
  switch (below(random, seed.json ? 9 : 7)) {
    case 0:
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << below(random, 8)));
      break;
    case 1:
      bytes[place] = static_cast<char>(random());
      break;
    case 2:
      bytes.resize(below(random, bytes.size() + 1));
      break;
    case 3:
      bytes.insert(place, random_bytes(random, 1 + below(random, 16)));
      break;
    case 4:
      bytes.erase(place, 1 + below(random, 16));
      break;
    case 5:
    case 6:
      set_field(random, seed, bytes);
      break;
    case 7:
      set_decimal(random, bytes);
      break;
    default:
      swap_token(random, bytes);
      break;
  }
}

std::string mutated(Random& random, const Seed& seed) {
  std::string bytes = seed.bytes;
  const uint64_t times = 1 + below(random, 3);
  for (uint64_t i = 0; i < times; ++i) mutate_once(random, seed, bytes);
  // Text of another length needs the header's length set right, or nothing behind that check is ever reached.
  const auto change = static_cast<int64_t>(bytes.size()) - static_cast<int64_t>(seed.bytes.size());
  if (seed.json && !seed.fields.empty() && bytes.size() >= 8 && random() % 4) {
    int64_t length = 0;
    std::memcpy(&length, seed.bytes.data(), sizeof(length));
    length += change;
    std::memcpy(bytes.data(), &length, sizeof(length));
  }
  return bytes;
}

Seed safetensors_seed(Random& random) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"model.embed.weight":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},)"
      R"("a":{"dtype":"F16","shape":[3,5],"data_offsets":[128,158]},"b":{"dtype":"BF16","shape":[7],"data_offsets":[158,172]},)"
      R"("c":{"dtype":"I64","shape":[],"data_offsets":[172,180]},"d":{"dtype":"F64","shape":[2,1,2],"data_offsets":[180,212]},)"
      R"("empty":{"dtype":"U8","shape":[0,9],"data_offsets":[212,212]},"e":{"dtype":"BOOL","shape":[6],"data_offsets":[212,218]}})";
  return {files::safetensors(header, random_bytes(random, 218)), {{0, 8}}, true};
}

Seed gguf_seed(Random& random, uint32_t version) {
  files::Gguf gguf;
  gguf.version = version;
  gguf.text("general.architecture", "llama").number("general.alignment", files::kU32, uint32_t{32});
  gguf.number("u8", files::kU8, uint8_t{200})
      .number("i8", files::kI8, int8_t{-3})
      .number("u16", files::kU16, uint16_t{9});
  gguf.number("i16", files::kI16, int16_t{-9}).number("i32", files::kI32, int32_t{-70000});
  gguf.number("u64", files::kU64, uint64_t{1} << 40).number("i64", files::kI64, int64_t{-5});
  gguf.number("f32", files::kF32, 1e-5f).number("f64", files::kF64, 0.25).number("bool", files::kBool, uint8_t{1});
  gguf.texts("tokenizer.ggml.tokens", {"<s>", "a", "", "Ġthe"}).array<float>("scores", files::kF32, {0.f, -1.f, 2.5f});
  gguf.array<int32_t>("types", files::kI32, {1, 2, 3}).array<uint8_t>("flags", files::kBool, {1, 0, 1});
  gguf.array<uint64_t>("none", files::kU64, {});
  constexpr struct {
    uint32_t type;
    size_t row_bytes;  // Of 256 values.
  } kTypes[] = {{0, 1024}, {1, 512},  {30, 512}, {2, 144},  {3, 160},  {6, 176},  {7, 192},  {8, 272},  {10, 84},
                {11, 110}, {12, 144}, {13, 176}, {14, 210}, {20, 144}, {23, 136}, {24, 256}, {28, 2048}};
  for (const auto& [type, row_bytes] : kTypes) {
    if (random() % 3 == 0) continue;
    gguf.tensor("blk." + std::to_string(type) + ".weight", {256, 2}, type, random_bytes(random, 2 * row_bytes));
  }
  gguf.tensor("scalar", {}, 0, random_bytes(random, 4)).tensor("empty", {256, 0}, 12, "");
  Seed seed{gguf.bytes(), {}};
  seed.fields = gguf.fields();
  return seed;
}

[[noreturn]] void fail(const std::string& problem) {
  std::cerr << "fuzz: " << problem << "\n";
  std::exit(1);
}

/// Reads and writes every byte, and turns into floats what can be.
void touch(const StoredTensor& tensor) {
  const auto bytes = tensor.file->bytes();
  if (tensor.data < bytes.data() || tensor.bytes > bytes.size() ||
      tensor.data > bytes.data() + (bytes.size() - tensor.bytes)) {
    fail("tensor outside of its file: " + tensor.name);
  }
  const DTypeLayout& type = layout(tensor.dtype);
  const int64_t count = tensor.count();
  if (count / type.block_size * type.block_bytes != static_cast<int64_t>(tensor.bytes))
    fail("wrong size: " + tensor.name);
  for (size_t i = 0; i < tensor.bytes; ++i) tensor.data[i] ^= std::byte{1};
  std::vector<float> values(static_cast<size_t>(count));
  const bool integer = !is_quantised(tensor.dtype) && type.name[0] != 'F' && type.name != "BF16";
  try {
    if (!integer) dequantise(tensor.dtype, tensor.data, count, values.data());
  } catch (const Error& error) {
    fail(str("loaded, but can't be turned into floats: ", error.what()));
  }
}

struct Totals {
  int64_t files = 0, loaded = 0, refused = 0;

  /// Runs `load` and looks at how it ends.
  template <typename Load>
  void run(const std::string& path, const Load& load) {
    ++files;
    try {
      load(path);
      ++loaded;
    } catch (const Error& error) {
      const std::string_view text = error.what();
      if (!is_utf8(text) || text.find('\n') != text.npos || text.empty()) fail(str("not one line: ", text));
      ++refused;
    } catch (const std::exception& error) {
      fail(str("file ", files, ": ", error.what()));
    }
  }
};

void load_safetensors(const std::string& path) {
  for (const StoredTensor& tensor : read_safetensors(MappedFile::open(path))) touch(tensor);
}

void load_model(const std::string& path) {
  const ModelFiles model = open_model(path);
  for (const auto& [name, tensor] : model.tensors) touch(tensor);
}

void fuzz_safetensors(Random& random, int64_t count, Totals& totals) {
  const files::ScratchFolder folder;
  const Seed seed = safetensors_seed(random);
  load_safetensors(folder.write("seed.safetensors", seed.bytes));
  for (int64_t i = 0; i < count; ++i) {
    totals.run(folder.write("model.safetensors", mutated(random, seed)), load_safetensors);
  }
}

void fuzz_gguf(Random& random, int64_t count, Totals& totals) {
  const files::ScratchFolder folder;
  std::vector<Seed> seeds;
  for (uint32_t i = 0; i < 8; ++i) seeds.push_back(gguf_seed(random, 2 + i % 2));
  for (const Seed& seed : seeds) load_model(folder.write("seed.gguf", seed.bytes));
  for (int64_t i = 0; i < count; ++i) {
    const Seed& seed = seeds[below(random, seeds.size())];
    const std::string bytes = i % 2 ? with_value(seeds[0], static_cast<size_t>(i / 2)) : mutated(random, seed);
    totals.run(folder.write("model.gguf", bytes), load_model);
  }
}

void fuzz_sharded(Random& random, int64_t count, Totals& totals) {
  const files::ScratchFolder folder;
  const auto shard = [&](const char* names) {
    const std::string name = names;
    return files::safetensors(R"({")" + name + R"(":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},")" + name +
                                  R"(.bias":{"dtype":"F16","shape":[3],"data_offsets":[24,30]}})",
                              random_bytes(random, 30));
  };
  const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
  const std::string index = R"({"metadata":{"total_size":60},"weight_map":{"x":")" + first + R"(","x.bias":")" + first +
                            R"(","y":")" + second + R"(","y.bias":")" + second + R"("}})";
  const std::pair<std::string, Seed> seeds[] = {
      {"model.safetensors.index.json", {index, {}, true}},
      {"config.json", {R"({"model_type":"llama","hidden_size":64,"rope_scaling":null})", {}, true}},
      {first, {shard("x"), {{0, 8}}, true}},
      {second, {shard("y"), {{0, 8}}, true}},
  };
  for (const auto& [name, seed] : seeds) folder.write(name, seed.bytes);
  load_model(folder.path());
  for (int64_t i = 0; i < count; ++i) {
    const auto& [name, seed] = seeds[random() % 2 ? 0 : below(random, std::size(seeds))];
    folder.write(name, mutated(random, seed));
    totals.run(folder.path(), load_model);
    folder.write(name, seed.bytes);
  }
}

}  // namespace
}  // namespace glassformer

int main(int argc, char** argv) {
  using namespace glassformer;
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : 10'000;
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  Totals all;
  const auto run = [&](const char* format, auto fuzz) {
    Totals totals;
    fuzz(random, count, totals);
    std::cout << format << ": " << totals.files << " files, " << totals.loaded << " loaded, " << totals.refused
              << " refused\n";
    all.files += totals.files, all.loaded += totals.loaded, all.refused += totals.refused;
  };
  run("safetensors", fuzz_safetensors);
  run("gguf", fuzz_gguf);
  run("sharded", fuzz_sharded);
  std::cout << "fuzz: " << all.files << " files, " << all.loaded << " loaded, " << all.refused << " refused\n";
  return 0;
}
