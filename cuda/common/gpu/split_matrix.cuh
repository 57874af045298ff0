// Matrices in shared memory as the tensor cores' operands are fetched from them: of bf16 numbers,
// or of numbers that are split into head and tail (mma.cuh).
#pragma once

#include "mma.cuh"

namespace rwkv {

// [kRows][kColumns] of bf16 in shared memory. Eight rows' pieces of 16 bytes lie in different banks,
// so that operands are fetched without conflicts along rows and down columns: wide rows have a
// piece more than they need; rows of two pieces change them in every second four rows, which costs
// no memory, where half as much again would be lost.
template <int kRows, int kColumns> struct NarrowMatrix {
  static constexpr bool changes = kColumns == 16;
  static constexpr int stride = changes ? kColumns : kColumns + 8, elements = kRows * stride;
  uint16_t* base;

  __device__ explicit NarrowMatrix(uint16_t* base) : base(base) {}
  __host__ __device__ explicit NarrowMatrix(Pieces& pieces)
      : base(reinterpret_cast<uint16_t*>(pieces.bytes(elements * 2))) {}

  __device__ uint16_t* at(int row, int column) const {
    return base + row * stride + (changes ? column ^ ((row & 4) * 2) : column);
  }
  // Two neighbours; column even.
  __device__ unsigned& pair(int row, int column) const {
    return *reinterpret_cast<unsigned*>(at(row, column));
  }

  // Elements from (row, column) on as an operand. Of the left one, the inner index runs along the
  // rows; transposed: down the columns.
  __device__ __forceinline__ LeftOperand left(int row, int column, int lane) const {
    LeftOperand x;
    load_matrices<false>(x.bits, at(row + lane % 16, column + lane / 16 * 8));
    return x;
  }
  __device__ __forceinline__ LeftOperand left_transposed(int row, int column, int lane) const {
    LeftOperand x;
    load_matrices<true>(x.bits, at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    return x;
  }
  // Two right operands side by side; the inner index runs down the columns; transposed: along the
  // rows.
  __device__ __forceinline__ void rights(RightOperand (&x)[2], int row, int column,
                                         int lane) const {
    unsigned bits[4];
    load_matrices<true>(bits, at(row + lane % 16, column + lane / 16 * 8));
    x[0] = {{bits[0], bits[1]}}, x[1] = {{bits[2], bits[3]}};
  }
  __device__ __forceinline__ void rights_transposed(RightOperand (&x)[2], int row, int column,
                                                    int lane) const {
    unsigned bits[4];
    load_matrices<false>(bits, at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    x[0] = {{bits[0], bits[1]}}, x[1] = {{bits[2], bits[3]}};
  }
  __device__ __forceinline__ void store(const LeftOperand& x, int row, int column, int lane) const {
    const int g = lane / 4, t = lane % 4;
    pair(row + g, column + 2 * t) = x.bits[0];
    pair(row + g + 8, column + 2 * t) = x.bits[1];
    pair(row + g, column + 2 * t + 8) = x.bits[2];
    pair(row + g + 8, column + 2 * t + 8) = x.bits[3];
  }
};

// Two matrices that are used in turn, one behind the other.
template <class Matrix> struct InTurn {
  uint16_t* base;

  __host__ __device__ explicit InTurn(Pieces& pieces)
      : base(reinterpret_cast<uint16_t*>(pieces.bytes(2 * Matrix::elements * 2))) {}
  __device__ Matrix of(int turn) const { return Matrix(base + turn * Matrix::elements); }
};

// As NarrowMatrix, of numbers that are split; the tails lie behind the heads.
template <int kRows, int kColumns> struct SplitMatrix {
  using Part = NarrowMatrix<kRows, kColumns>;
  static constexpr int elements = 2 * Part::elements;
  uint16_t* base;

  __device__ explicit SplitMatrix(uint16_t* base) : base(base) {}
  __host__ __device__ explicit SplitMatrix(Pieces& pieces)
      : base(reinterpret_cast<uint16_t*>(pieces.bytes(elements * 2))) {}

  __device__ Part heads() const { return Part(base); }
  __device__ Part tails() const { return Part(base + Part::elements); }

  // Two neighbours; column even.
  __device__ __forceinline__ void set_pair(int row, int column, const SplitPair& pair) const {
    heads().pair(row, column) = pair.head;
    tails().pair(row, column) = pair.tail;
  }
  __device__ __forceinline__ void set_two(int row, int column, float x, float y) const {
    set_pair(row, column, SplitPair::of(x, y));
  }
  // Four neighbours; column a multiple of four.
  __device__ __forceinline__ void set_vec4(int row, int column, const float4& x) const {
    const SplitPair low = SplitPair::of(x.x, x.y), high = SplitPair::of(x.z, x.w);
    *reinterpret_cast<uint2*>(heads().at(row, column)) = {low.head, high.head};
    *reinterpret_cast<uint2*>(tails().at(row, column)) = {low.tail, high.tail};
  }
  // As many numbers in fp32, which take the place of both parts.
  __device__ __forceinline__ void set_two_floats(int row, int column, float x, float y) const {
    set_pair(row, column, {__float_as_uint(x), __float_as_uint(y)});
  }
  __device__ __forceinline__ float4 vec4_of_floats(int row, int column) const {
    const uint2 even = *reinterpret_cast<const uint2*>(heads().at(row, column));
    const uint2 odd = *reinterpret_cast<const uint2*>(tails().at(row, column));
    return make_float4(__uint_as_float(even.x), __uint_as_float(odd.x), __uint_as_float(even.y),
                       __uint_as_float(odd.y));
  }
  __device__ __forceinline__ float4 vec4(int row, int column) const {
    const uint2 head = *reinterpret_cast<const uint2*>(heads().at(row, column));
    const uint2 tail = *reinterpret_cast<const uint2*>(tails().at(row, column));
    const float2 low = SplitPair{head.x, tail.x}.sum(), high = SplitPair{head.y, tail.y}.sum();
    return make_float4(low.x, low.y, high.x, high.y);
  }

  __device__ __forceinline__ Split<LeftOperand> left(int row, int column, int lane) const {
    return {heads().left(row, column, lane), tails().left(row, column, lane)};
  }
  __device__ __forceinline__ Split<LeftOperand> left_transposed(int row, int column,
                                                                int lane) const {
    return {heads().left_transposed(row, column, lane), tails().left_transposed(row, column, lane)};
  }
  __device__ __forceinline__ void rights(Split<RightOperand> (&x)[2], int row, int column,
                                         int lane) const {
    RightOperand head[2], tail[2];
    heads().rights(head, row, column, lane);
    tails().rights(tail, row, column, lane);
    x[0] = {head[0], tail[0]}, x[1] = {head[1], tail[1]};
  }
  __device__ __forceinline__ void rights_transposed(Split<RightOperand> (&x)[2], int row,
                                                    int column, int lane) const {
    RightOperand head[2], tail[2];
    heads().rights_transposed(head, row, column, lane);
    tails().rights_transposed(tail, row, column, lane);
    x[0] = {head[0], tail[0]}, x[1] = {head[1], tail[1]};
  }
  __device__ __forceinline__ void store(const Split<LeftOperand>& x, int row, int column,
                                        int lane) const {
    heads().store(x.head, row, column, lane);
    tails().store(x.tail, row, column, lane);
  }
};

}  // namespace rwkv
