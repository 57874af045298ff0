// Matrix products on tensor cores: 16 x 8 += (16 x 8) (8 x 8), operands in tf32 (10 bits behind the
// point, the range of fp32), sums in fp32.
//
// A lane's place in a fragment is (g, t) = (lane / 4, lane % 4). Accumulators hold rows g and g +
// 8, columns 2t and 2t + 1. The instruction wants of the left operand columns t and t + 4, of the
// right one rows t and t + 4; but the order in which the inner dimension is summed is ours to
// choose, as long as both operands have the same. In pairs: inner index 2t takes the place of t and
// 2t + 1 that of t + 4; then accumulators can serve as operands of the next product as they are.
// Straight: t and t + 4 themselves; then one instruction fetches a whole operand whose inner index
// runs along the rows. What is not called straight is in pairs.
#pragma once

#include "octets.cuh"

namespace rwkv {

using Accumulator = float[4];
struct LeftOperand {
  unsigned bits[4];
};
struct RightOperand {
  unsigned bits[2];
};
// An operand of twice as many digits: numbers cut to tf32, and what was cut off.
template <class Operand> struct Split {
  Operand head, tail;
};

// To the nearest; without it the hardware cuts the last 13 bits off.
__device__ __forceinline__ unsigned tf32_bits(float x) {
#if defined(RWKV_HOST_SHIM)
  // Half of the last place that stays, then the rest is cut; infinity and NaN stay what they are.
  const unsigned given = __float_as_uint(x);
  return (given & 0x7f800000u) == 0x7f800000u ? given : (given + 0x1000u) & 0xffffe000u;
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}
__device__ __forceinline__ float round_tf32(float x) { return __uint_as_float(tf32_bits(x)); }

// The first 10 bits behind the point, and the bits behind those; cutting is cheaper than rounding,
// and what the hardware cuts off the rest is below 2^-21 of x.
__device__ __forceinline__ unsigned cut_bits(float x) { return __float_as_uint(x) & 0xffffe000u; }
__device__ __forceinline__ unsigned rest_bits(float x) {
  return __float_as_uint(x - __uint_as_float(cut_bits(x)));
}

__device__ __forceinline__ void multiply_add(Accumulator& sum, const LeftOperand& a,
                                             const RightOperand& b) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::multiply_tf32(sum, a.bits, b.bits);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
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
// The product of the tails is below what sums in fp32 keep.
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Split<LeftOperand>& a,
                                             const Split<RightOperand>& b) {
  multiply_add(sum, a.tail, b.head);
  multiply_add(sum, a.head, b);
}

// Of four matrices of 8 rows of 4 elements: element t of row g of each. Lanes 8 i .. 8 i + 7 give
// where the rows of matrix i begin, multiples of 16 bytes in shared memory.
__device__ __forceinline__ void load_matrices(float (&x)[4], const float* row) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::load_matrices(x, row);
#else
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  unsigned bits[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
               : "r"(shared)
               : "memory");
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(bits[i]);
#endif
}

// What a matrix holds: numbers in tf32, or in fp32, which are rounded to tf32 or else split in two
// when they are read as operands.
enum class Held { kTf32, kFp32, kSplit };

// A matrix in memory, as a rule in shared memory.
template <int kStride, Held kHeld = Held::kTf32> struct Matrix {
  static constexpr int stride = kStride;
  static constexpr bool rounded = kHeld == Held::kTf32;
  template <Held kOther> using With = Matrix<kStride, kOther>;
  float* base;

  __device__ float* at(int row, int column) const { return base + row * kStride + column; }
  __device__ Matrix from(int row, int column) const { return {at(row, column)}; }
  __device__ void set(int row, int column, float x) const { *at(row, column) = held(x); }
  __device__ void set_two(int row, int column, const float2& x) const {
    *reinterpret_cast<float2*>(at(row, column)) = make_float2(held(x.x), held(x.y));
  }
  // The same numbers, rounded when read instead of split.
  __device__ auto heads() const {
    return With<rounded ? Held::kTf32 : Held::kFp32>{base};
  }

  // Rows 0 .. 16 of it as the left operand, inner index along the row.
  __device__ __forceinline__ auto left(int lane) const {
    const int g = lane / 4, t = lane % 4;
    const float2 low = *reinterpret_cast<const float2*>(at(g, 2 * t));
    const float2 high = *reinterpret_cast<const float2*>(at(g + 8, 2 * t));
    return operand<LeftOperand>(low.x, high.x, low.y, high.y);
  }
  // Columns 0 .. 16 of it as the rows of the left operand, inner index down the column.
  __device__ __forceinline__ auto left_transposed(int lane) const {
    const int g = lane / 4, t = lane % 4;
    return operand<LeftOperand>(*at(2 * t, g), *at(2 * t, g + 8), *at(2 * t + 1, g),
                                *at(2 * t + 1, g + 8));
  }
  // The right operand, inner index down the column.
  __device__ __forceinline__ auto right(int lane) const {
    const int g = lane / 4, t = lane % 4;
    return operand<RightOperand>(*at(2 * t, g), *at(2 * t + 1, g));
  }
  // Rows 0 .. 8 of it as the columns of the right operand, inner index along the row.
  __device__ __forceinline__ auto right_transposed(int lane) const {
    const int g = lane / 4, t = lane % 4;
    const float2 pair = *reinterpret_cast<const float2*>(at(g, 2 * t));
    return operand<RightOperand>(pair.x, pair.y);
  }

  // Straight: as `left`.
  __device__ __forceinline__ auto straight_left(int lane) const {
    float x[4];
    load_matrices(x, at(lane % 16, lane / 16 * 4));
    return operand<LeftOperand>(x[0], x[1], x[2], x[3]);
  }
  // Straight: as `right`.
  __device__ __forceinline__ auto straight_right(int lane) const {
    const int g = lane / 4, t = lane % 4;
    return operand<RightOperand>(*at(t, g), *at(t + 4, g));
  }
  // Straight: as `right_transposed`, of rows 0 .. 8 and of rows 8 .. 16.
  __device__ __forceinline__ void straight_rights_transposed(RightOperand (&x)[2],
                                                             int lane) const {
    float y[4];
    load_matrices(y, at(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 4));
    x[0] = operand<RightOperand>(y[0], y[1]);
    x[1] = operand<RightOperand>(y[2], y[3]);
  }

 private:
  __device__ static float held(float x) { return rounded ? round_tf32(x) : x; }
  __device__ static unsigned bits(float x) { return rounded ? __float_as_uint(x) : tf32_bits(x); }

  template <class Operand, typename... Elements>
  __device__ __forceinline__ static auto operand(Elements... x) {
    if constexpr (kHeld == Held::kSplit) {
      return Split<Operand>{{{cut_bits(x)...}}, {{rest_bits(x)...}}};
    } else {
      return Operand{{bits(x)...}};
    }
  }
};

// Accumulators as the left operand of the next product.
__device__ __forceinline__ LeftOperand as_left(const Accumulator& x) {
  return {{tf32_bits(x[0]), tf32_bits(x[2]), tf32_bits(x[1]), tf32_bits(x[3])}};
}

// The left operand with its inner index 2t multiplied by `even` and 2t + 1 by `odd`, each 0 or 1.
__device__ __forceinline__ LeftOperand keep_inner(const LeftOperand& a, float even, float odd) {
  return {{even != 0.0f ? a.bits[0] : 0u, even != 0.0f ? a.bits[1] : 0u,
           odd != 0.0f ? a.bits[2] : 0u, odd != 0.0f ? a.bits[3] : 0u}};
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
