// CPU kernel of the products of a few vectors with one matrix. Such a product is as fast as the
// weight comes from memory: every element is read once, for all vectors, and widened in registers.
#include "matvec.h"

#include <algorithm>

#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace {

RWKV_INLINE Vec<float> load_wide(const int8_t* from) {
#if defined(__AVX512F__)
  // Compilers take several instructions for what is one on AVX-512.
  __m128i bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  const __m512 wide = _mm512_cvtepi32_ps(_mm512_maskz_cvtepi8_epi32(0xffff, bytes));
  Vec<float> x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
#else
  Vec<float> x{};
  for (int i = 0; i < kLanes<float>; ++i) x[i] = from[i];
  return x;
#endif
}
using rwkv::load_wide;

// Vectors whose sums stay in registers while a row is read; more take turns, row by row, for which
// the row is still in the first-level cache.
constexpr int kTogether = 4;
// Sums of one product, which would wait for one another if they were one.
constexpr int kSums = 4;
// Bytes between what is read and what is asked for: rows follow one another in memory, and the
// processor by itself does not ask far enough ahead.
constexpr int64_t kAhead = 8192;

// Row n of the weight times vectors [first, first + kBatch). Every product has one order of its
// terms: a vector's result does not depend on the company it is in.
template <typename E, int kBatch>
RWKV_INLINE void multiply_row(const Matvec& p, int64_t n, int64_t first) {
  constexpr int L = kLanes<float>, kBlock = kSums * L, kLine = 64 / sizeof(E);
  const int64_t K = p.inputs;
  const E* const row = static_cast<const E*>(p.weight) + n * K;
  const float* const x = p.x + first * K;
  Vec<float> sum[kBatch][kSums] = {};
  int64_t k = 0;
  for (; k + kBlock <= K; k += kBlock) {
    for (int i = 0; i < kBlock; i += kLine) {
      __builtin_prefetch(reinterpret_cast<const char*>(row + k + i) + kAhead);
    }
    for (int s = 0; s < kSums; ++s) {
      const Vec<float> w = load_wide(row + k + s * L);
      for (int b = 0; b < kBatch; ++b) sum[b][s] += w * load<float>(x + b * K + k + s * L);
    }
  }
  for (; k + L <= K; k += L) {
    const Vec<float> w = load_wide(row + k);
    for (int b = 0; b < kBatch; ++b) sum[b][0] += w * load<float>(x + b * K + k);
  }
  const float scale = p.scale == nullptr ? 1 : p.scale[n];
  for (int b = 0; b < kBatch; ++b) {
    Vec<float> joined = (sum[b][0] + sum[b][1]) + (sum[b][2] + sum[b][3]);
    float total = sum_lanes<float, 1>(&joined)[0];
    for (int64_t rest = k; rest < K; ++rest) {
      const E one[L] = {row[rest]};
      total += load_wide(one)[0] * x[b * K + rest];
    }
    p.y[(first + b) * p.outputs + n] = total * scale;
  }
}

template <typename E> void multiply(const Matvec& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    int64_t first = 0;
    for (; first + kTogether <= p.batch; first += kTogether) {
      multiply_row<E, kTogether>(p, n, first);
    }
    switch (p.batch - first) {
      case 3: multiply_row<E, 3>(p, n, first); break;
      case 2: multiply_row<E, 2>(p, n, first); break;
      case 1: multiply_row<E, 1>(p, n, first); break;
    }
  }
}

}  // namespace

void matvec_forward_cpu(const Matvec& p, int64_t begin, int64_t end) {
  const int64_t first = begin * kMatvecTaskRows;
  const int64_t last = std::min(end * kMatvecTaskRows, p.outputs);
  if (p.scale != nullptr) return multiply<int8_t>(p, first, last);
  switch (p.dtype) {
    case DType::kFloat: return multiply<float>(p, first, last);
    case DType::kHalf: return multiply<Half>(p, first, last);
    case DType::kBFloat16: return multiply<BFloat16>(p, first, last);
    // Refused by the host code.
    case DType::kDouble: return;
  }
}

}  // namespace rwkv
