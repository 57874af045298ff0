// What the kernels that go by chunks of 16 tokens on tensor cores share: how a block's threads own
// the state of a head, and the products that they repeat.
//
// A block has one head of size 64 and four warps with 16 values of the state each, all keys, as
// accumulators [value][key]. What belongs to values is kept transposed, tokens in columns: then
// every warp has its own values from the state to the output and passes products on in registers.
#pragma once

#include "chunk_documents.cuh"
#include "mma.cuh"

namespace rwkv {

struct ChunkTile {
  static constexpr int kN = 64, kRows = kN, kChunk = kChunkTokens, kSlices = 1;
  static constexpr int kWarps = 4, kThreads = kWarps * kWarp;
  static_assert(kThreads * kOctet == kChunk * kN);  // a thread has eight elements of a chunk's rows
  static constexpr int kKeyTiles = kN / 8;  // accumulators of a thread

  using State = Accumulator[kKeyTiles];
  // Matrices of a chunk in shared memory. The strides put what a warp reads together into different
  // banks: along rows (the first), or down columns.
  using ByRows = Matrix<kN + 8>;
  using ByColumns = Matrix<kN + 4>;
  using Square = Matrix<kChunk + 4>;  // [token][token]
  static constexpr int kSquare = kChunk * Square::stride;

  // The thread's part of a state in memory, [values][keys]; null stands for zero.
  __device__ static void load_state(State& S, const float* from) {
    const int lane = lane_number(), row = warp_number() * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      float2 low = make_float2(0.0f, 0.0f), high = low;
      if (from != nullptr) {
        low = *reinterpret_cast<const float2*>(from + row * kN + column);
        high = *reinterpret_cast<const float2*>(from + (row + 8) * kN + column);
      }
      S[n][0] = low.x, S[n][1] = low.y, S[n][2] = high.x, S[n][3] = high.y;
    }
  }
  __device__ static void store_state(const State& S, float* to) {
    store_state(S, Matrix<kN, Held::kFp32>{to});
  }
  template <class To> __device__ static void store_state(const State& S, const To& to) {
    store_rows(S, to.from(warp_number() * 16, 0));
  }
  // Sixteen rows of kTiles * 8 columns.
  template <int kTiles, class To>
  __device__ static void store_rows(const Accumulator (&x)[kTiles], const To& to) {
    const To own = to.from(lane_number() / 4, lane_number() % 4 * 2);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      own.set_two(0, n * 8, make_float2(x[n][0], x[n][1]));
      own.set_two(8, n * 8, make_float2(x[n][2], x[n][3]));
    }
  }
};

// A thread's share of the elementwise work: two keys, four tokens. Lanes of a warp have eight pairs
// of keys times the chunk's four quarters.
struct PairOfKeys {
  static constexpr int kTokens = 4, kQuarters = 4;
  int key, quarter, first_token;

  __device__ PairOfKeys()
      : key((warp_number() * 8 + lane_number() % 8) * 2), quarter(lane_number() / 8),
        first_token(quarter * kTokens) {}

  // Where the keys of the quarter's token i lie in rows of 64 elements that are kept apart: the
  // quarters, which a warp meets together, in different banks.
  __device__ int apart(int i) const {
    return (first_token + i) * ChunkTile::kN + apart_key(quarter);
  }
  // Of the token behind it; row 16 lies as row 0 does.
  __device__ int apart_behind(int i) const {
    return i + 1 < kTokens ? apart(i + 1)
                           : (first_token + kTokens) * ChunkTile::kN + apart_key(quarter + 1);
  }

  // What the thread of each quarter with these keys gives.
  __device__ static void gather(float2 (&all)[kQuarters], const float2& mine) {
#pragma unroll
    for (int n = 0; n < kQuarters; ++n) {
      all[n].x = __shfl_sync(kAllLanes, mine.x, n * 8 + lane_number() % 8);
      all[n].y = __shfl_sync(kAllLanes, mine.y, n * 8 + lane_number() % 8);
    }
  }
  // The sum of x over the quarters before this one.
  __device__ float2 sum_before(const float2& x) const {
    float2 all[kQuarters], before = make_float2(0.0f, 0.0f);
    gather(all, x);
#pragma unroll
    for (int n = 0; n < kQuarters; ++n) {
      before.x += n < quarter ? all[n].x : 0.0f;
      before.y += n < quarter ? all[n].y : 0.0f;
    }
    return before;
  }

 private:
  __device__ int apart_key(int number) const { return key ^ number % kQuarters * 16; }
};

__device__ inline float2 load_two(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ inline void store_two(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}

// values: as fetched, [16][64] of a two-byte type; exact in tf32. Tokens beyond the end become
// zero.
template <class To>
__device__ void widen_values(const To& to, const unsigned char* values, DType dtype, int tokens) {
  const int own = static_cast<int>(threadIdx.x);
  const OctetOf<ChunkTile::kN> octet(own);
  const Octet x = load_octet(values, own * kOctet, dtype);
  store_floats(to.at(octet.token, octet.at), octet.token < tokens ? x : Octet::of(0.0f));
}

// x = left right^T, both [16][64].
template <class Left, class Right>
__device__ __forceinline__ void multiply_rows(Accumulator (&x)[2], const Left& left,
                                              const Right& right, int lane) {
  clear(x[0]), clear(x[1]);
#pragma unroll
  for (int i = 0; i < ChunkTile::kN; i += 8) {
    const LeftOperand operand = left.from(0, i).straight_left(lane);
    RightOperand rights[2];
    right.from(0, i).straight_rights_transposed(rights, lane);
    multiply_add(x[0], operand, rights[0]);
    multiply_add(x[1], operand, rights[1]);
  }
}

// x = S rows^T: of the warp's values and all tokens, for the tokens with factor 1, else 0.
template <class Rows>
__device__ __forceinline__ void multiply_state(Accumulator (&x)[2], const ChunkTile::State& S,
                                               const Rows& rows, const float* factors, int lane) {
  clear(x[0]), clear(x[1]);
#pragma unroll
  for (int i = 0; i < ChunkTile::kKeyTiles; ++i) {
    const LeftOperand state = as_left(S[i]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply_add(x[n], state, rows.from(n * 8, i * 8).right_transposed(lane));
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 factor = load_two(factors + n * 8 + lane % 4 * 2);
    scale_columns(x[n], factor.x, factor.y);
  }
}

// x = rows state, of kTiles key tiles from tile `first` on, for the tokens with factor 1, else 0.
// rows: [tokens][values], state: [values][keys]. In pairs, for states with the stride of ByColumns.
template <int kTiles, class Rows, class State>
__device__ __forceinline__ void multiply_rows_by_state(Accumulator (&x)[kTiles], const Rows& rows,
                                                       const State& state, int first,
                                                       const float* factors, int lane) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) clear(x[i]);
#pragma unroll
  for (int n = 0; n < ChunkTile::kN; n += 8) {
    const LeftOperand left = rows.from(0, n).left(lane);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      multiply_add(x[i], left, state.from(n, (first + i) * 8).right(lane));
    }
  }
  const float low = factors[lane / 4], high = factors[lane / 4 + 8];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    x[i][0] *= low, x[i][1] *= low, x[i][2] *= high, x[i][3] *= high;
  }
}

// x[m] = rows state likewise, of two matrices of rows. Straight, for states with the stride of
// ByRows and rows with that of ByColumns.
template <int kTiles, class Rows, class State>
__device__ __forceinline__ void multiply_both_by_state(Accumulator (&x)[2][kTiles],
                                                       const Rows& rows, const Rows& others,
                                                       const State& state, int first,
                                                       const float* factors, int lane) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) clear(x[0][i]), clear(x[1][i]);
#pragma unroll
  for (int n = 0; n < ChunkTile::kN; n += 8) {
    const LeftOperand left = rows.from(0, n).straight_left(lane);
    const LeftOperand other = others.from(0, n).straight_left(lane);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const RightOperand right = state.from(n, (first + i) * 8).straight_right(lane);
      multiply_add(x[0][i], left, right);
      multiply_add(x[1][i], other, right);
    }
  }
  const float low = factors[lane / 4], high = factors[lane / 4 + 8];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      x[m][i][0] *= low, x[m][i][1] *= low, x[m][i][2] *= high, x[m][i][3] *= high;
    }
  }
}

// x += left square^T, where square is lower triangular.
__device__ __forceinline__ void add_lower(Accumulator (&x)[2], const LeftOperand (&left)[2],
                                          const ChunkTile::Square& square, int lane) {
  multiply_add(x[0], left[0], square.right_transposed(lane));
  multiply_add(x[1], left[0], square.from(8, 0).right_transposed(lane));
  multiply_add(x[1], left[1], square.from(8, 8).right_transposed(lane));
}

// x += left square, where square is lower triangular.
__device__ __forceinline__ void add_upper(Accumulator (&x)[2], const LeftOperand (&left)[2],
                                          const ChunkTile::Square& square, int lane) {
  multiply_add(x[0], left[0], square.right(lane));
  multiply_add(x[0], left[1], square.from(8, 0).right(lane));
  multiply_add(x[1], left[1], square.from(8, 8).right(lane));
}

// The warp's values of a [token][value] matrix, values in rows.
template <class Values>
__device__ __forceinline__ void load_own_values(LeftOperand (&x)[2], const Values& from, int lane) {
  x[0] = from.from(0, warp_number() * 16).left_transposed(lane);
  x[1] = from.from(8, warp_number() * 16).left_transposed(lane);
}

// x, the warp's values in rows, to a [token][value] matrix.
template <bool kRounded, class Values>
__device__ __forceinline__ void place_own_values(const Accumulator (&x)[2], const Values& to,
                                                 int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* const at =
          to.at(n * 8 + lane % 4 * 2 + i % 2, warp_number() * 16 + lane / 4 + i / 2 * 8);
      *at = kRounded ? round_tf32(x[n][i]) : x[n][i];
    }
  }
}

// The tokens with factor 1, inner index of the operands.
__device__ __forceinline__ void keep_tokens(LeftOperand (&x)[2], const float* factors, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 factor = load_two(factors + n * 8 + lane % 4 * 2);
    x[n] = keep_inner(x[n], factor.x, factor.y);
  }
}

// [16][64] fp32 in shared memory to rows of tokens in a tensor [B, T, H, 64].
template <class Rows, class Place>
__device__ void write_rows(void* to, const Rows& rows, const Place& place, DType dtype, int64_t t,
                           int tokens) {
  const OctetOf<ChunkTile::kN> octet(static_cast<int>(threadIdx.x));
  if (octet.token >= tokens) return;
  store_octet(to, place.token(t + octet.token) + octet.at, dtype,
              load_floats(rows.at(octet.token, octet.at)));
}

}  // namespace rwkv
