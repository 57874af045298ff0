// What the kernels that go by chunks of 16 tokens on tensor cores share: how a block's threads own
// the state of a head, and the products that they repeat.
//
// A block has one head of size 64 and four warps with 16 values of the state each, all keys, as
// accumulators [value][key]. What belongs to values is kept transposed, tokens in columns: then
// every warp has its own values from the state to the output and passes products on in registers.
// A chunk's tokens are the inner index of one operand.
#pragma once

#include "../gpu/split_matrix.cuh"
#include "../gpu/vec4.cuh"
#include "chunk_documents.cuh"

namespace rwkv {

struct ChunkTile {
  static constexpr int kN = 64, kRows = kN, kChunk = kChunkTokens, kSlices = 1;
  static constexpr int kWarps = kChunkWarps, kThreads = kWarps * kWarp;
  static_assert(kThreads * kVec8 == kChunk * kN);  // a thread has eight elements of a chunk's rows
  static constexpr int kKeyTiles = kN / 8;         // accumulators of a thread

  using State = Accumulator[kKeyTiles];
  // Matrices of a chunk in shared memory, of numbers that are split or that are exact in bf16.
  using Rows = SplitMatrix<kChunk, kN>;  // [token][key or value]
  using ExactRows = NarrowMatrix<kChunk, kN>;
  using Columns = SplitMatrix<kN, kChunk>;     // [value][token]
  using Square = SplitMatrix<kChunk, kChunk>;  // [token][token]
  using HeadState = SplitMatrix<kN, kN>;       // [value][key]
  // Of fp32 numbers, [token][key]: threads that read four keys meet in different banks.
  static constexpr int kFloatStride = kN + 8;

  // Of the kThreads that work together on a chunk; a block may have several times as many.
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
  __device__ static int warp() { return warp_number() % kWarps; }

  // The thread's part of a state in memory, [values][keys]; null stands for zero.
  __device__ static void load_state(State& S, const float* from) {
    const int lane = lane_number(), row = ChunkTile::warp() * 16 + lane / 4;
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
    const int lane = lane_number();
    float* const own = to + (ChunkTile::warp() * 16 + lane / 4) * kN + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      *reinterpret_cast<float2*>(own + n * 8) = make_float2(S[n][0], S[n][1]);
      *reinterpret_cast<float2*>(own + 8 * kN + n * 8) = make_float2(S[n][2], S[n][3]);
    }
  }
  // Split, for fetch_split_state: in matrices of 8 x 8 elements one behind the other, first the
  // heads, then the tails; of the same size as in fp32.
  __device__ static void store_split_state(const State& S, float* to) {
    const int lane = lane_number(), first = ChunkTile::warp() * 2;
    auto* const own = reinterpret_cast<unsigned*>(to) + lane;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const SplitPair pair = SplitPair::of(S[n][2 * half], S[n][2 * half + 1]);
        const int at = ((first + half) * kKeyTiles + n) * kWarp;
        own[at] = pair.head;
        own[at + kN * kN / 2] = pair.tail;
      }
    }
  }
};

// A thread's share of the elementwise work: four keys, two tokens. Lanes of a warp have four fours
// of keys times the chunk's eight pairs of tokens.
struct FourKeys {
  static constexpr int kTokens = 2, kPairs = 8;
  int key, pair, first_token;

  __device__ FourKeys()
      : key((ChunkTile::warp() * 4 + lane_number() % 4) * 4), pair(lane_number() / 4),
        first_token(pair * kTokens) {}

  // Of the thread that has these keys and the pair of tokens pair ^ bit.
  __device__ static float4 of_pair(const float4& x, int bit) {
    const int bits = bit * 4;
    return make_float4(__shfl_xor_sync(kAllLanes, x.x, bits), __shfl_xor_sync(kAllLanes, x.y, bits),
                       __shfl_xor_sync(kAllLanes, x.z, bits),
                       __shfl_xor_sync(kAllLanes, x.w, bits));
  }
  // The sum of x over the pairs of tokens before this one.
  __device__ float4 sum_before(const float4& x) const {
    float4 whole = x, before = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int bit = 1; bit < kPairs; bit *= 2) {
      const float4 other = of_pair(whole, bit);
      if ((pair & bit) != 0) add_to(before, other);
      add_to(whole, other);
    }
    return before;
  }
};

// The tokens with factor 1, inner index of the operands.
__device__ __forceinline__ InnerMask mask_of(const float* factors, int lane) {
  const float2 low = load_vec2(factors + lane % 4 * 2),
               high = load_vec2(factors + lane % 4 * 2 + 8);
  const auto word = [](const float2& x) {
    return (x.x != 0.0f ? 0xffffu : 0u) | (x.y != 0.0f ? 0xffff0000u : 0u);
  };
  return {word(low), word(high)};
}

// Where documents start in the chunk, lets only the tokens with factor 1 act on the state, which
// has nothing of what it was at the chunk's other end. operands: tokens are their inner index.
template <class... Operands>
__device__ __forceinline__ void cut_documents(ChunkTile::State& S, const ChunkDocuments& documents,
                                              const float* factors, int lane,
                                              Operands&... operands) {
  if (!documents.cut()) return;
  const InnerMask kept = mask_of(factors, lane);
  (keep_inner(operands, kept), ...);
#pragma unroll
  for (int i = 0; i < ChunkTile::kKeyTiles; ++i) clear(S[i]);
}

// Tokens in columns: those with factor 1, else 0.
__device__ __forceinline__ void scale_tokens(Accumulator (&x)[2], const float* factors, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 factor = load_vec2(factors + n * 8 + lane % 4 * 2);
    scale_columns(x[n], factor.x, factor.y);
  }
}

// x += left times two right operands side by side.
template <class Left, class Right>
__device__ __forceinline__ void multiply_add_two(Accumulator* x, const Left& left,
                                                 const Right (&right)[2]) {
  multiply_add(x[0], left, right[0]);
  multiply_add(x[1], left, right[1]);
}

// x += left square^T, of a square [token][token].
template <class Left>
__device__ __forceinline__ void add_lower(Accumulator (&x)[2], const Left& left,
                                          const ChunkTile::Square& square, int lane) {
  Split<RightOperand> right[2];
  square.rights_transposed(right, 0, 0, lane);
  multiply_add_two(x, left, right);
}
// x += left square
template <class Left>
__device__ __forceinline__ void add_upper(Accumulator (&x)[2], const Left& left,
                                          const ChunkTile::Square& square, int lane) {
  Split<RightOperand> right[2];
  square.rights(right, 0, 0, lane);
  multiply_add_two(x, left, right);
}

// x += left rows^T of 16 keys from `key` on: of the warp's values and all tokens.
template <class Left>
__device__ __forceinline__ void add_keys(Accumulator (&x)[2], const Left& left,
                                         const ChunkTile::Rows& rows, int key, int lane) {
  Split<RightOperand> right[2];
  rows.rights_transposed(right, 0, key, lane);
  multiply_add_two(x, left, right);
}

// S += left rows: left the warp's values and all tokens. Two key tiles from `tile` on.
template <class Left>
__device__ __forceinline__ void add_tokens(ChunkTile::State& S, int tile, const Left& left,
                                           const ChunkTile::Rows& rows, int lane) {
  Split<RightOperand> right[2];
  rows.rights(right, 0, tile * 8, lane);
  multiply_add_two(&S[tile], left, right);
}

// x, the warp's values in rows and tokens in columns, in bf16 to rows of tokens.
__device__ __forceinline__ void place_own_values(const Accumulator (&x)[2],
                                                 const ChunkTile::ExactRows& to, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned pair =
          bit_cast_to<unsigned>(__floats2bfloat162_rn(x[n][2 * half], x[n][2 * half + 1]));
      to.pair(n * 8 + lane / 4, ChunkTile::warp() * 16 + half * 8 + lane % 4 * 2) =
          transpose_matrix(pair);
    }
  }
}

// Sixteen rows of kTiles * 8 columns to fp32 rows, from `to` on.
template <int kTiles>
__device__ __forceinline__ void store_rows(const Accumulator (&x)[kTiles], float* to, int lane) {
  float* const own = to + lane / 4 * ChunkTile::kFloatStride + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    *reinterpret_cast<float2*>(own + n * 8) = make_float2(x[n][0], x[n][1]);
    *reinterpret_cast<float2*>(own + 8 * ChunkTile::kFloatStride + n * 8) =
        make_float2(x[n][2], x[n][3]);
  }
}

// The warp's own values of bf16 rows in shared memory to rows of tokens in a tensor [B, T, H, 64].
// Eight lanes that read together have the same column.
template <class Place> __device__ void write_own_values(void* to, const ChunkTile::ExactRows& rows,
                                                        const Place& place, int64_t t, int tokens) {
  const int token = lane_number() % 16, at = ChunkTile::warp() * 16 + lane_number() / 16 * kVec8;
  if (token >= tokens) return;
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(to) + place.token(t + token) + at) =
      *reinterpret_cast<const uint4*>(rows.at(token, at));
}

}  // namespace rwkv
