#include "glassformer/io/quantised.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "glassformer/base/errors.h"

using namespace glassformer;

namespace {

constexpr int64_t kCount = 1024;

/// What the `gguf` Python package makes of `sample_blocks`: the first and the last value, and the hash of all.
struct Golden {
  DType dtype;
  std::vector<size_t> halves;  // Where a block has its scale and its least value.
  float first, last;
  uint64_t hash;
};

const std::vector<Golden> kGolden = {
    {DType::kQ4_0, {0}, 0.1461181640625f, 0.52459716796875f, 0xe80a5534ddf5c5e7},
    {DType::kQ4_1, {0, 2}, 0.350067138671875f, 1.06744384765625f, 0xf9922be8ad4f5c28},
    {DType::kQ5_0, {0}, 0.681884765625f, -0.52459716796875f, 0xe2929f22bb0a41c4},
    {DType::kQ5_1, {0, 2}, 0.350067138671875f, 0.3330078125f, 0x33ac6f601e8dc03e},
    {DType::kQ8_0, {0}, -5.6986083984375f, 7.3443603515625f, 0x1a3aedab383ac94f},
    {DType::kQ2_K, {80, 82}, 0.2435302734375f, 1.10955810546875f, 0xdc0f352fea7a0ea1},
    {DType::kQ3_K, {108}, 0.58447265625f, 0.52093505859375f, 0xad4e04fb1162a333},
    {DType::kQ4_K, {0, 2}, 10.691162109375f, 21.69146728515625f, 0x76dd4e1fab4a1b94},
    {DType::kQ5_K, {0, 2}, 41.863037109375f, 79.33541870117188f, 0x218662a99087ae40},
    {DType::kQ6_K, {208}, 82.8489990234375f, -2.917236328125f, 0x57c7d18e7c32dedd},
    {DType::kIQ4_NL, {0}, 1.850830078125f, 7.23944091796875f, 0x0c58b36226b68118},
    {DType::kIQ4_XS, {0}, 1.1689453125f, -129.8170166015625f, 0x578b89b68a8a7092},
};

std::vector<std::byte> pseudo_random(size_t count) {
  uint32_t state = 12345;
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

std::vector<std::byte> sample_blocks(const Golden& golden) {
  const auto size = static_cast<size_t>(layout(golden.dtype).block_bytes);
  const size_t blocks = static_cast<size_t>(kCount / layout(golden.dtype).block_size);
  std::vector<std::byte> bytes = pseudo_random(blocks * size);
  for (size_t i = 0; i < blocks; ++i) {
    for (size_t k = 0; k < golden.halves.size(); ++k) {
      const auto half = static_cast<uint16_t>((k == 0 ? 0x2A3C : 0xA911) + i * 37);
      std::memcpy(bytes.data() + i * size + golden.halves[k], &half, sizeof(half));
    }
  }
  return bytes;
}

uint64_t hash_of(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 255u)) * 0x100000001b3;
  }
  return hash;
}

template <typename T>
std::vector<float> floats(DType dtype, const std::vector<T>& stored) {
  std::vector<float> values(stored.size());
  dequantise(dtype, reinterpret_cast<const std::byte*>(stored.data()), static_cast<int64_t>(stored.size()),
             values.data());
  return values;
}

}  // namespace

TEST_CASE("quantised blocks become the same floats as in the gguf package, to the bit") {
  for (const Golden& golden : kGolden) {
    CAPTURE(std::string(layout(golden.dtype).name));
    const std::vector<std::byte> blocks = sample_blocks(golden);
    std::vector<float> values(kCount);
    dequantise(golden.dtype, blocks.data(), kCount, values.data());
    CHECK(values.front() == golden.first);
    CHECK(values.back() == golden.last);
    CHECK(hash_of(values) == golden.hash);
  }
}

TEST_CASE("many threads make the same values as one block at a time, wherever the data lies") {
  constexpr int64_t kMany = 3'000'032;  // Splits into parts of unequal size.
  const auto type = layout(DType::kQ4_1);
  std::vector<std::byte> blocks = pseudo_random(static_cast<size_t>(kMany / 32 * type.block_bytes) + 1);
  for (size_t i = 2; i < blocks.size(); i += 2) blocks[i] &= std::byte{0x3B};  // No scale is infinite or NaN.
  const std::byte* start = blocks.data() + 1;
  std::vector<float> values(kMany), expected(kMany);
  dequantise(DType::kQ4_1, start, kMany, values.data());
  for (int64_t i = 0; i < kMany / 32; ++i) {
    dequantise(DType::kQ4_1, start + i * type.block_bytes, 32, expected.data() + 32 * i);
  }
  CHECK(std::memcmp(values.data(), expected.data(), values.size() * sizeof(float)) == 0);
}

TEST_CASE("plain floats of every width") {
  const auto from_half =
      floats<uint16_t>(DType::kFloat16, {0x0000, 0x8000, 0x3C00, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFC00, 0x7E00});
  CHECK(from_half[0] == 0.0f);
  CHECK(std::signbit(from_half[1]));
  CHECK(from_half[2] == 1.0f);
  CHECK(from_half[3] == 0x1p-24f);
  CHECK(from_half[4] == -1023 * 0x1p-24f);
  CHECK(from_half[5] == 0x1p-14f);
  CHECK(from_half[6] == 65504.0f);
  CHECK(from_half[7] == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(from_half[8]));
  CHECK(floats<uint16_t>(DType::kBFloat16, {0x3F80, 0xC040, 0x0001}) == std::vector<float>{1.0f, -3.0f, 0x1p-133f});
  CHECK(floats<double>(DType::kFloat64, {0.1, -2.5}) == std::vector<float>{0.1f, -2.5f});
  CHECK(floats<float>(DType::kFloat32, {0.1f, -2.5f}) == std::vector<float>{0.1f, -2.5f});
}

TEST_CASE("what can't be turned into floats is refused") {
  std::vector<std::byte> bytes(64);
  float value = 0;
  CHECK_THROWS_WITH_AS(dequantise(DType::kInt32, bytes.data(), 1, &value),
                       "tensors of type I32 can't be read as float32", UnsupportedError);
  CHECK_THROWS_WITH_AS(dequantise(DType::kQ4_0, bytes.data(), 33, &value),
                       "33 values are no whole number of Q4_0 blocks of 32", ShapeError);
  dequantise(DType::kQ4_0, bytes.data(), 0, &value);
}
