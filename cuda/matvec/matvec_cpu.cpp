// CPU kernel of the products of a few vectors with one matrix. Such a product is as fast as the
// weight comes from memory: every element is read once, for all vectors, and widened in registers.
// No prefetching by instructions: processors fetch a few streams ahead faster by themselves.
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
  const __m512 wide = _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
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

// Rows that are read together. Each is a stream of memory of its own; they lie far apart, since of
// two streams within a page the processor fetches neither ahead. And x, which the weights drive out
// of the first-level cache again and again, is read once for all of them: the more bytes of x there
// are to one of the weight, the more rows pay.
template <typename E> constexpr int kStreams = sizeof(E) == 4 || kLanes<float> < 8 ? 4 : 6;
// Vectors whose sums stay in registers while rows are read; more take turns, for which the rows are
// still in the first-level cache.
constexpr int kTogether = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Leaves eight registers to x and the weights.
template <typename E> constexpr int streams_of(int batch) {
  return std::min(kStreams<E>, (kRegisters - 8) / batch);
}

// Rows n, n + apart, n + 2 apart, ... of the weight times vectors [first, first + kBatch). Every
// product has one order of its terms: a vector's result does not depend on the company it is in,
// nor on how the rows are shared out.
template <typename E, int kRows, int kBatch>
RWKV_INLINE void multiply_rows(const Matvec& p, int64_t n, int64_t apart, int64_t first) {
  constexpr int L = kLanes<float>, kPadded = kRows > 4 ? 8 : kRows > 2 ? 4 : kRows;
  const int64_t K = p.inputs;
  const float* const x = p.x + first * K;
  const E* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = static_cast<const E*>(p.weight) + (n + r * apart) * K;
  Vec<float> sum[kBatch][kPadded] = {};
  int64_t k = 0;
  for (; k + L <= K; k += L) {
    Vec<float> part[kBatch];
    for (int b = 0; b < kBatch; ++b) part[b] = load<float>(x + b * K + k);
    for (int r = 0; r < kRows; ++r) {
      const Vec<float> w = load_wide(row[r] + k);
      for (int b = 0; b < kBatch; ++b) sum[b][r] += w * part[b];
    }
  }
  for (int b = 0; b < kBatch; ++b) {
    float totals[L];
    store<float>(totals, sum_lanes<float, kPadded>(sum[b]));
    for (int r = 0; r < kRows; ++r) {
      float total = totals[r * (L / kPadded)];
      for (int64_t rest = k; rest < K; ++rest) {
        const E one[L] = {row[r][rest]};
        total += load_wide(one)[0] * x[b * K + rest];
      }
      p.y[(first + b) * p.outputs + n + r * apart] = total;
    }
  }
}

// The same with all vectors.
template <typename E, int kRows>
RWKV_INLINE void multiply_group(const Matvec& p, int64_t n, int64_t apart) {
  int64_t first = 0;
  for (; first + kTogether <= p.batch; first += kTogether) {
    multiply_rows<E, kRows, kTogether>(p, n, apart, first);
  }
  switch (p.batch - first) {
    case 3: multiply_rows<E, kRows, 3>(p, n, apart, first); break;
    case 2: multiply_rows<E, kRows, 2>(p, n, apart, first); break;
    case 1: multiply_rows<E, kRows, 1>(p, n, apart, first); break;
  }
}

template <typename E, int kRows> void multiply_range(const Matvec& p, int64_t begin, int64_t end) {
  const int64_t apart = (end - begin) / kRows;
  for (int64_t n = begin; n < begin + apart; ++n) multiply_group<E, kRows>(p, n, apart);
  for (int64_t n = begin + kRows * apart; n < end; ++n) multiply_group<E, 1>(p, n, 0);
}

template <typename E> void multiply(const Matvec& p, int64_t begin, int64_t end) {
  switch (std::min<int64_t>(p.batch, kTogether)) {
    case 1: return multiply_range<E, streams_of<E>(1)>(p, begin, end);
    case 2: return multiply_range<E, streams_of<E>(2)>(p, begin, end);
    case 3: return multiply_range<E, streams_of<E>(3)>(p, begin, end);
    case 4: return multiply_range<E, streams_of<E>(4)>(p, begin, end);
  }
}

// Afterwards and in their order: a few numbers from as many places as there are streams, each once
// a row, held the rows up by a third.
void scale_range(const Matvec& p, int64_t begin, int64_t end) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t n = begin; n < end; ++n) p.y[b * p.outputs + n] *= p.scale[n];
  }
}

}  // namespace

void matvec_forward_cpu(const Matvec& p, int64_t begin, int64_t end) {
  const int64_t first = begin * kMatvecTaskRows;
  const int64_t last = std::min(end * kMatvecTaskRows, p.outputs);
  if (p.scale != nullptr) {
    multiply<int8_t>(p, first, last);
    return scale_range(p, first, last);
  }
  switch (p.dtype) {
    case DType::kFloat: return multiply<float>(p, first, last);
    case DType::kHalf: return multiply<Half>(p, first, last);
    case DType::kBFloat16: return multiply<BFloat16>(p, first, last);
    // Refused by the host code.
    case DType::kDouble: return;
  }
}

}  // namespace rwkv
