// Matrix products on tensor cores: 16 x 8 += (16 x 16) (16 x 8), operands in bf16, sums in fp32.
//
// bf16 has eight digits. An operand that needs more is split into a head, the nearest bf16, and a
// tail, what is left of it in bf16: together within 2^-17. A product of two such operands is three
// products, without that of the tails, which is as small as the error; where one of the two is
// exact in bf16, as the inputs are, it is two.
//
// A lane's place in a fragment is (g, t) = (lane / 4, lane % 4). Accumulators hold rows g and g +
// 8, columns 2t and 2t + 1; a left operand likewise two such tiles side by side. So accumulators,
// rounded, are an operand of the next product as they are.
#pragma once

#include "vec8.cuh"

namespace rwkv {

using Accumulator = float[4];
// Each word two neighbours of the inner index: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8).
struct LeftOperand {
  unsigned bits[4];
};
struct RightOperand {
  unsigned bits[2];
};
template <class Operand> struct Split {
  Operand head, tail;
};

// Two numbers; the first one in the lower half of a word.
struct SplitPair {
  unsigned head, tail;

  __device__ __forceinline__ static SplitPair of(float x, float y) {
    const unsigned head = packed(x, y);
    return {head, packed(x - first(head), y - second(head))};
  }
  __device__ __forceinline__ float2 sum() const {
    return make_float2(first(head) + first(tail), second(head) + second(tail));
  }

 private:
  __device__ static unsigned packed(float x, float y) {
    return bit_cast_to<unsigned>(__floats2bfloat162_rn(x, y));
  }
  __device__ static float first(unsigned word) { return __uint_as_float(word << 16); }
  __device__ static float second(unsigned word) { return __uint_as_float(word & 0xffff0000u); }
};

__device__ __forceinline__ void multiply_add(Accumulator& sum, const LeftOperand& a,
                                             const RightOperand& b) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::multiply_bf16(sum, a.bits, b.bits);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.bits[0]), "r"(a.bits[1]), "r"(a.bits[2]), "r"(a.bits[3]), "r"(b.bits[0]),
        "r"(b.bits[1]));
#endif
}
__device__ __forceinline__ void multiply_add(Accumulator& sum, const LeftOperand& a,
                                             const Split<RightOperand>& b) {
  multiply_add(sum, a, b.tail);
  multiply_add(sum, a, b.head);
}
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Split<LeftOperand>& a,
                                             const RightOperand& b) {
  multiply_add(sum, a.tail, b);
  multiply_add(sum, a.head, b);
}
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Split<LeftOperand>& a,
                                             const Split<RightOperand>& b) {
  multiply_add(sum, a.tail, b.head);
  multiply_add(sum, a.head, b);
}

// With the product of the tails, for sums that are to cancel against others to the last digits.
__device__ __forceinline__ void multiply_add_whole(Accumulator& sum, const Split<LeftOperand>& a,
                                                   const Split<RightOperand>& b) {
  multiply_add(sum, a.tail, b);
  multiply_add(sum, a.head, b);
}

// Of four matrices of 8 x 8 bf16: elements 2t and 2t + 1 of row g of each; transposed: of column
// g. Lanes 8 i .. 8 i + 7 give where the rows of matrix i begin, multiples of 16 bytes in shared
// memory.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const uint16_t* row) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::load_matrices(x, row, kTransposed);
#else
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared)
                 : "memory");
  }
#endif
}

// Of a matrix of 8 x 8 elements of 16 bits, elements 2t and 2t + 1 of row g: those of column g.
__device__ __forceinline__ unsigned transpose_matrix(unsigned x) {
#if defined(RWKV_HOST_SHIM)
  return rwkv_shim::transpose_matrix(x);
#else
  unsigned y;
  // Volatile: not to be moved to where only some lanes need it.
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
#endif
}

// Two accumulators side by side as the left operand of the next product.
__device__ __forceinline__ Split<LeftOperand> split_left(const Accumulator& x,
                                                         const Accumulator& y) {
  const SplitPair pairs[4] = {SplitPair::of(x[0], x[1]), SplitPair::of(x[2], x[3]),
                              SplitPair::of(y[0], y[1]), SplitPair::of(y[2], y[3])};
  Split<LeftOperand> split;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    split.head.bits[i] = pairs[i].head;
    split.tail.bits[i] = pairs[i].tail;
  }
  return split;
}

// And back.
__device__ __forceinline__ void join_left(Accumulator& x, Accumulator& y,
                                          const Split<LeftOperand>& split) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = SplitPair{split.head.bits[i], split.tail.bits[i]}.sum();
    float* const to = (i < 2 ? x : y) + i % 2 * 2;
    to[0] = pair.x, to[1] = pair.y;
  }
}

// kept: for the inner indices 2t, 2t + 1, 2t + 8 and 2t + 9 (the lower halves first), all ones or
// zero.
struct InnerMask {
  unsigned low, high;
};
__device__ __forceinline__ void keep_inner(LeftOperand& a, const InnerMask& kept) {
  a.bits[0] &= kept.low, a.bits[1] &= kept.low, a.bits[2] &= kept.high, a.bits[3] &= kept.high;
}
__device__ __forceinline__ void keep_inner(Split<LeftOperand>& a, const InnerMask& kept) {
  keep_inner(a.head, kept);
  keep_inner(a.tail, kept);
}

__device__ __forceinline__ void clear(Accumulator& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = 0.0f;
}

// Multiplies columns 2t and 2t + 1.
__device__ __forceinline__ void scale_columns(Accumulator& x, float even, float odd) {
  x[0] *= even, x[1] *= odd, x[2] *= even, x[3] *= odd;
}

}  // namespace rwkv
