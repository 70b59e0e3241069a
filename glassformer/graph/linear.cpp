#include "glassformer/graph/linear.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <cstring>

// Note: few rows
// With one to four rows a product is bound by reading the weight once, and the BLAS that torch calls stays far below
// that (it packs the weight for each call). These loops read every weight once, in order, for all rows together.
// Vectors of 16 floats are compiled for AVX-512, AVX2 and the baseline; the machine picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define GLASSFORMER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GLASSFORMER_CLONES
#endif

namespace glassformer {
namespace {

constexpr int64_t kMostRows = 4, kLanes = 16;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

struct Product {
  const float *x, *weight, *bias;  // bias may be null
  float* out;
  int64_t n_rows, n_in, n_out, stride;  // Of the weight: from one row to the next, or from one column to the next.
};

inline __attribute__((always_inline)) Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline __attribute__((always_inline)) float total(const Lanes& lanes) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Outputs [begin, end) of a weight whose rows (one output's inputs) are contiguous.
template <int kRows>
inline __attribute__((always_inline)) void dot_rows(const Product& p, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; ++output) {
    const float* w = p.weight + output * p.stride;
    Lanes sums[kRows] = {};
    int64_t i = 0;
    for (; i + kLanes <= p.n_in; i += kLanes) {
      const Lanes values = load(w + i);
      for (int r = 0; r < kRows; ++r) sums[r] += values * load(p.x + r * p.n_in + i);
    }
    for (int r = 0; r < kRows; ++r) {
      float sum = total(sums[r]);
      for (int64_t rest = i; rest < p.n_in; ++rest) sum += w[rest] * p.x[r * p.n_in + rest];
      p.out[r * p.n_out + output] = sum + (p.bias == nullptr ? 0 : p.bias[output]);
    }
  }
}

// The same for a weight whose columns (one input's outputs) are contiguous, outputs a multiple of the lanes. Walks the
// inputs, four at a time, over a strip of outputs that stays in the nearest cache, so that the weight is read in runs
// of a page.
template <int kRows>
inline __attribute__((always_inline)) void add_columns(const Product& p, int64_t begin, int64_t end) {
  constexpr int64_t kStrip = 1024, kInputs = 4;
  alignas(64) float sums[kRows][kStrip];
  for (int64_t strip = begin; strip < end; strip += kStrip) {
    const int64_t width = std::min(kStrip, end - strip);
    for (int r = 0; r < kRows; ++r)
      for (int64_t j = 0; j < width; ++j) sums[r][j] = p.bias == nullptr ? 0 : p.bias[strip + j];
    for (int64_t i = 0; i < p.n_in; i += kInputs) {
      const auto n_inputs = static_cast<int>(std::min(kInputs, p.n_in - i));
      for (int64_t j = 0; j < width; j += kLanes) {
        Lanes total[kRows];
        for (int r = 0; r < kRows; ++r) total[r] = load(&sums[r][j]);
        for (int step = 0; step < n_inputs; ++step) {
          const Lanes values = load(p.weight + (i + step) * p.stride + strip + j);
          for (int r = 0; r < kRows; ++r) total[r] += values * p.x[r * p.n_in + i + step];
        }
        for (int r = 0; r < kRows; ++r) std::memcpy(&sums[r][j], &total[r], sizeof(Lanes));
      }
    }
    for (int r = 0; r < kRows; ++r)
      std::memcpy(p.out + r * p.n_out + strip, sums[r], static_cast<size_t>(width) * sizeof(float));
  }
}

GLASSFORMER_CLONES void multiply_by_rows(const Product& p, int64_t begin, int64_t end) {
  if (p.n_rows == 1) dot_rows<1>(p, begin, end);
  if (p.n_rows == 2) dot_rows<2>(p, begin, end);
  if (p.n_rows == 3) dot_rows<3>(p, begin, end);
  if (p.n_rows == 4) dot_rows<4>(p, begin, end);
}

GLASSFORMER_CLONES void multiply_by_columns(const Product& p, int64_t begin, int64_t end) {
  if (p.n_rows == 1) add_columns<1>(p, begin, end);
  if (p.n_rows == 2) add_columns<2>(p, begin, end);
  if (p.n_rows == 3) add_columns<3>(p, begin, end);
  if (p.n_rows == 4) add_columns<4>(p, begin, end);
}

bool wants_graph(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::GradMode::is_enabled() &&
         (x.requires_grad() || weight.requires_grad() || (bias.defined() && bias.requires_grad()));
}

bool suits_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const bool plain =
      x.device().is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() == 2;
  if (!plain || x.size(0) > kMostRows || wants_graph(x, weight, bias)) return false;
  return weight.stride(1) == 1 || (weight.stride(0) == 1 && weight.size(0) % kLanes == 0);
}

at::Tensor multiply_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor input = x.contiguous(), addend = bias.defined() ? bias.contiguous() : bias;
  at::Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  const bool by_rows = weight.stride(1) == 1;
  const Product product{input.const_data_ptr<float>(),
                        weight.const_data_ptr<float>(),
                        addend.defined() ? addend.const_data_ptr<float>() : nullptr,
                        out.mutable_data_ptr<float>(),
                        x.size(0),
                        x.size(1),
                        weight.size(0),
                        by_rows ? weight.stride(0) : weight.stride(1)};
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(product.n_in, 1));
  if (by_rows) {
    at::parallel_for(0, product.n_out, grain,
                     [&](int64_t begin, int64_t end) { multiply_by_rows(product, begin, end); });
  } else {
    at::parallel_for(0, product.n_out / kLanes, std::max<int64_t>(1, grain / kLanes),
                     [&](int64_t begin, int64_t end) { multiply_by_columns(product, begin * kLanes, end * kLanes); });
  }
  return out;
}

// Note: many rows
// Of the two libraries that torch has for products of float32, at::linear takes MKL, which leaves AVX-512 unused on
// processors of other makers than its own: there oneDNN is twice as fast, but for weights that are a part of a tensor,
// for which it has a reference of its own alone.
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                std::string_view, c10::List<std::optional<at::Scalar>>,
                                std::optional<std::string_view>);

const c10::TypedOperatorHandle<OneDnnLinear>* find_onednn_linear() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("intel") || !__builtin_cpu_supports("avx512f") || !at::hasMKL()) return nullptr;
  const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found) return nullptr;
  static const c10::TypedOperatorHandle<OneDnnLinear> handle = found->typed<OneDnnLinear>();
  return &handle;
#else
  return nullptr;
#endif
}

bool suits_onednn(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const bool plain =
      x.device().is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() == 2;
  const bool dense = weight.is_contiguous() || weight.t().is_contiguous();
  return plain && dense && x.numel() > 0 && !wants_graph(x, weight, bias) && at::globalContext().userEnabledMkldnn();
}

}  // namespace

at::Tensor linear_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (suits_few_rows(x, weight, bias)) return multiply_few_rows(x, weight, bias);
  static const c10::TypedOperatorHandle<OneDnnLinear>* const onednn = find_onednn_linear();
  if (onednn != nullptr && suits_onednn(x, weight, bias)) {
    const std::optional<at::Tensor> addend = bias.defined() ? std::optional(bias.contiguous()) : std::nullopt;
    return onednn->call(x, weight.detach(), addend, "none", c10::List<std::optional<at::Scalar>>(), "");
  }
  return at::linear(x, weight, bias);
}

}  // namespace glassformer
