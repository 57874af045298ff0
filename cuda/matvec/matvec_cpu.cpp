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

// sum[r][b] += one vector of row r times that of x[b], both at k.
template <typename E, int kRows, int kBatch>
RWKV_INLINE void add_products(const Matvec& p, const E* weight, int64_t k,
                              Vec<float> (*sum)[kBatch]) {
  Vec<float> x[kBatch];
  for (int b = 0; b < kBatch; ++b) x[b] = load<float>(p.x + b * p.inputs + k);
  for (int r = 0; r < kRows; ++r) {
    const Vec<float> w = load_wide(weight + r * p.inputs + k);
    for (int b = 0; b < kBatch; ++b) sum[r][b] += w * x[b];
  }
}

// kRows rows of the weight times all vectors. Every sum has a register for itself and one order,
// whatever kRows and kBatch are: a vector's result does not depend on the company it is in.
template <typename E, int kRows, int kBatch>
RWKV_INLINE void multiply_rows(const Matvec& p, const E* weight, int64_t first) {
  constexpr int L = kLanes<float>, kLine = std::max<int>(64 / sizeof(E), L);
  const int64_t K = p.inputs;
  Vec<float> sum[kRows][kBatch] = {};
  int64_t k = 0;
  for (; k + kLine <= K; k += kLine) {
    // The next rows follow these in memory; asked for now, they are there when they are read.
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(weight + (kRows + r) * K + k);
    for (int l = 0; l < kLine; l += L) add_products<E, kRows, kBatch>(p, weight, k + l, sum);
  }
  for (; k + L <= K; k += L) add_products<E, kRows, kBatch>(p, weight, k, sum);
  for (int r = 0; r < kRows; ++r) {
    const float scale = p.scale == nullptr ? 1 : p.scale[first + r];
    for (int b = 0; b < kBatch; ++b) {
      float total = sum_lanes<float, 1>(&sum[r][b])[0];
      for (int64_t rest = k; rest < K; ++rest) {
        const E one[L] = {weight[r * K + rest]};
        total += load_wide(one)[0] * p.x[b * K + rest];
      }
      p.y[b * p.outputs + first + r] = total * scale;
    }
  }
}

// Rows [begin, end) of the weight, as many at a time as sums find registers.
template <typename E, int kBatch>
void multiply(const Matvec& p, int64_t begin, int64_t end) {
  constexpr int kRows = kBatch <= 4 ? 4 : 2;
  const E* const weight = static_cast<const E*>(p.weight);
  int64_t n = begin;
  for (; n + kRows <= end; n += kRows) {
    multiply_rows<E, kRows, kBatch>(p, weight + n * p.inputs, n);
  }
  for (; n < end; ++n) multiply_rows<E, 1, kBatch>(p, weight + n * p.inputs, n);
}

template <typename E> void multiply_any(const Matvec& p, int64_t begin, int64_t end) {
  switch (p.batch) {
    case 1: return multiply<E, 1>(p, begin, end);
    case 2: return multiply<E, 2>(p, begin, end);
    case 3: return multiply<E, 3>(p, begin, end);
    case 4: return multiply<E, 4>(p, begin, end);
    case 5: return multiply<E, 5>(p, begin, end);
    case 6: return multiply<E, 6>(p, begin, end);
    case 7: return multiply<E, 7>(p, begin, end);
    case kMostMatvecRows: return multiply<E, kMostMatvecRows>(p, begin, end);
  }
}

}  // namespace

void matvec_forward_cpu(const Matvec& p, int64_t begin, int64_t end) {
  const int64_t first = begin * kMatvecTaskRows;
  const int64_t last = std::min(end * kMatvecTaskRows, p.outputs);
  if (p.scale != nullptr) return multiply_any<int8_t>(p, first, last);
  switch (p.dtype) {
    case DType::kFloat: return multiply_any<float>(p, first, last);
    case DType::kHalf: return multiply_any<Half>(p, first, last);
    case DType::kBFloat16: return multiply_any<BFloat16>(p, first, last);
    // Refused by the host code.
    case DType::kDouble: return;
  }
}

}  // namespace rwkv
