#include "glassformer/io/quantised.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "glassformer/base/errors.h"

// Every product below is exact in float32 (11 bits of a half, and at most 12 of a scale and a value together), so that
// a fused multiply-add changes no number; but it does change which NaN comes out where both operands are one.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace glassformer {
namespace {

constexpr int kBlock = 32;
constexpr int kSuperBlock = 256;

inline uint16_t load16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

inline uint32_t load32(const uint8_t* bytes) {
  uint32_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

/// Exact, also where the processor is set to flush denormals: no step has a denormal operand.
inline float half_bits(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half & 0x7C00u;
  const uint32_t fraction = half & 0x03FFu;
  const uint32_t normal = ((half & 0x7FFFu) << 13) + (112u << 23);
  const uint32_t denormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(fraction)) * 0x1p-24f);
  const uint32_t special = (0xFFu << 23) | (fraction << 13);
  const uint32_t finite = exponent == 0 ? denormal : normal;
  return std::bit_cast<float>(sign | (exponent == 0x7C00u ? special : finite));
}

inline float half(const uint8_t* bytes) { return half_bits(load16(bytes)); }

inline float number(int value) { return static_cast<float>(value); }

void from_f32(const uint8_t* in, int64_t count, float* out) { std::memcpy(out, in, static_cast<size_t>(count) * 4); }

void from_f64(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, in + 8 * i, sizeof(value));
    out[i] = static_cast<float>(value);
  }
}

void from_f16(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = half(in + 2 * i);
}

void from_bf16(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::bit_cast<float>(uint32_t{load16(in + 2 * i)} << 16);
}

void from_q4_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 18, out += kBlock) {
    const float scale = half(in);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * number((in[2 + i] & 15) - 8);
      out[16 + i] = scale * number((in[2 + i] >> 4) - 8);
    }
  }
}

void from_q4_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 20, out += kBlock) {
    const float scale = half(in), least = half(in + 2);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * number(in[4 + i] & 15) + least;
      out[16 + i] = scale * number(in[4 + i] >> 4) + least;
    }
  }
}

/// The fifth bit of value i, in its place.
inline int fifth(uint32_t bits, int i) { return static_cast<int>((bits >> i) & 1u) << 4; }

void from_q5_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 22, out += kBlock) {
    const float scale = half(in);
    const uint32_t high = load32(in + 2);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * number(((in[6 + i] & 15) | fifth(high, i)) - 16);
      out[16 + i] = scale * number(((in[6 + i] >> 4) | fifth(high, 16 + i)) - 16);
    }
  }
}

void from_q5_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 24, out += kBlock) {
    const float scale = half(in), least = half(in + 2);
    const uint32_t high = load32(in + 4);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * number((in[8 + i] & 15) | fifth(high, i)) + least;
      out[16 + i] = scale * number((in[8 + i] >> 4) | fifth(high, 16 + i)) + least;
    }
  }
}

void from_q8_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 34, out += kBlock) {
    const float scale = half(in);
    for (int i = 0; i < kBlock; ++i) out[i] = number(static_cast<int8_t>(in[2 + i])) * scale;
  }
}

void from_q2_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 84, out += kSuperBlock) {
    const uint8_t *scales = in, *low = in + 16;
    const float scale = half(in + 80), least = half(in + 82);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * number(scales[group] & 15);
      const float group_least = least * number(scales[group] >> 4);
      const uint8_t* packed = low + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * ((group / 2) % 4);
      for (int i = 0; i < 16; ++i) out[16 * group + i] = group_scale * number((packed[i] >> shift) & 3) - group_least;
    }
  }
}

void from_q3_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 110, out += kSuperBlock) {
    const uint8_t *high = in, *low = in + 32, *scales = in + 96;
    const float scale = half(in + 108);
    for (int group = 0; group < 16; ++group) {
      const int scale_low = (scales[group % 8] >> (4 * (group / 8))) & 15;
      const int scale_high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
      const float group_scale = scale * number((scale_low | scale_high << 4) - 32);
      const uint8_t* packed = low + 32 * (group / 8) + 16 * (group % 2);
      const uint8_t* mask = high + 16 * (group % 2);
      const int shift = 2 * ((group / 2) % 4), bit = group / 2;
      for (int i = 0; i < 16; ++i) {
        const int value = ((packed[i] >> shift) & 3) + 4 * ((mask[i] >> bit) & 1) - 4;
        out[16 * group + i] = group_scale * number(value);
      }
    }
  }
}

struct ScaleAndLeast {
  int scale, least;
};

/// The eight pairs of six-bit numbers that Q4_K and Q5_K keep in twelve bytes.
inline ScaleAndLeast unpack(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[4 + group] & 63};
  const int j = group - 4;
  return {(packed[8 + j] & 15) | ((packed[j] >> 2) & 0x30), (packed[8 + j] >> 4) | ((packed[4 + j] >> 2) & 0x30)};
}

void from_q4_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 144, out += kSuperBlock) {
    const float scale = half(in), least = half(in + 2);
    for (int group = 0; group < 8; ++group) {
      const ScaleAndLeast pair = unpack(in + 4, group);
      const float group_scale = scale * number(pair.scale), group_least = least * number(pair.least);
      const uint8_t* packed = in + 16 + 32 * (group / 2);
      const int shift = 4 * (group % 2);
      for (int i = 0; i < 32; ++i) out[32 * group + i] = group_scale * number((packed[i] >> shift) & 15) - group_least;
    }
  }
}

void from_q5_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 176, out += kSuperBlock) {
    const float scale = half(in), least = half(in + 2);
    const uint8_t* high = in + 16;
    for (int group = 0; group < 8; ++group) {
      const ScaleAndLeast pair = unpack(in + 4, group);
      const float group_scale = scale * number(pair.scale), group_least = least * number(pair.least);
      const uint8_t* packed = in + 48 + 32 * (group / 2);
      const int shift = 4 * (group % 2);
      for (int i = 0; i < 32; ++i) {
        const int value = ((packed[i] >> shift) & 15) | (((high[i] >> group) & 1) << 4);
        out[32 * group + i] = group_scale * number(value) - group_least;
      }
    }
  }
}

void from_q6_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 210, out += kSuperBlock) {
    const uint8_t *low = in, *high = in + 128, *scales = in + 192;
    const float scale = half(in + 208);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * number(static_cast<int8_t>(scales[group]));
      const int half_block = group / 8, quarter = (group / 2) % 4, odd = 16 * (group % 2);
      const uint8_t* packed = low + 64 * half_block + 32 * (quarter % 2) + odd;
      const uint8_t* mask = high + 32 * half_block + odd;
      const int low_shift = 4 * (quarter / 2), high_shift = 2 * quarter;
      for (int i = 0; i < 16; ++i) {
        const int value = (((packed[i] >> low_shift) & 15) | (((mask[i] >> high_shift) & 3) << 4)) - 32;
        out[16 * group + i] = group_scale * number(value);
      }
    }
  }
}

constexpr float kCodebook[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void from_iq4_nl(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 18, out += kBlock) {
    const float scale = half(in);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * kCodebook[in[2 + i] & 15];
      out[16 + i] = scale * kCodebook[in[2 + i] >> 4];
    }
  }
}

void from_iq4_xs(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 136, out += kSuperBlock) {
    const float scale = half(in);
    const int scales_high = load16(in + 2);
    for (int group = 0; group < 8; ++group) {
      const int scale_low = (in[4 + group / 2] >> (4 * (group % 2))) & 15;
      const int scale_high = (scales_high >> (2 * group)) & 3;
      const float group_scale = scale * number((scale_low | scale_high << 4) - 32);
      const uint8_t* packed = in + 8 + 16 * group;
      for (int i = 0; i < 16; ++i) {
        out[32 * group + i] = group_scale * kCodebook[packed[i] & 15];
        out[32 * group + 16 + i] = group_scale * kCodebook[packed[i] >> 4];
      }
    }
  }
}

using Kernel = void (*)(const uint8_t* in, int64_t blocks, float* out);

Kernel kernel_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return from_f64;
    case DType::kFloat32:
      return from_f32;
    case DType::kFloat16:
      return from_f16;
    case DType::kBFloat16:
      return from_bf16;
    case DType::kQ4_0:
      return from_q4_0;
    case DType::kQ4_1:
      return from_q4_1;
    case DType::kQ5_0:
      return from_q5_0;
    case DType::kQ5_1:
      return from_q5_1;
    case DType::kQ8_0:
      return from_q8_0;
    case DType::kQ2_K:
      return from_q2_k;
    case DType::kQ3_K:
      return from_q3_k;
    case DType::kQ4_K:
      return from_q4_k;
    case DType::kQ5_K:
      return from_q5_k;
    case DType::kQ6_K:
      return from_q6_k;
    case DType::kIQ4_NL:
      return from_iq4_nl;
    case DType::kIQ4_XS:
      return from_iq4_xs;
    default:
      throw UnsupportedError(str("tensors of type ", layout(dtype).name, " can't be read as float32"));
  }
}

/// Calls `work(first, last)` on parts of `[0, blocks)`, each on a thread of its own where there is enough to do.
template <typename Work>
void in_parallel(int64_t blocks, int64_t smallest_part, const Work& work) {
  const int64_t most = std::max(1u, std::thread::hardware_concurrency());
  const int64_t parts = std::clamp<int64_t>(blocks / smallest_part, 1, most);
  const auto edge = [&](int64_t part) { return blocks / parts * part + std::min(part, blocks % parts); };
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<size_t>(parts));
  int64_t part = 1;
  try {
    for (; part < parts; ++part) threads.emplace_back(work, edge(part), edge(part + 1));
  } catch (const std::system_error&) {  // No more threads to be had: this one does the rest.
    work(edge(part), blocks);
  }
  work(0, edge(1));
}

}  // namespace

void dequantise(DType dtype, const std::byte* blocks, int64_t count, float* out) {
  constexpr int64_t kSmallestPart = 1 << 18;  // Values; below it, starting a thread takes longer than the work.
  const Kernel kernel = kernel_of(dtype);
  const DTypeLayout& type = layout(dtype);
  if (count < 0 || count % type.block_size != 0) {
    throw ShapeError(str(count, " values are no whole number of ", type.name, " blocks of ", type.block_size));
  }
  if (count == 0) return;
  const auto* bytes = reinterpret_cast<const uint8_t*>(blocks);
  in_parallel(count / type.block_size, kSmallestPart / type.block_size, [=](int64_t first, int64_t last) {
    kernel(bytes + first * type.block_bytes, last - first, out + first * type.block_size);
  });
}

}  // namespace glassformer
