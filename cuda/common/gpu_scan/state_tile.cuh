// How the N x N state of a head, indexed [value][key], is split over threads and blocks.
#pragma once

#include "../gpu/device.cuh"
#include "../gpu/warp_reduce.cuh"

namespace rwkv {

// Tokens whose states the backward pass holds in registers at a time.
constexpr int kBurst = 4;

// A thread owns kR values x kC keys; the lanes of a warp that share values lie side by side and
// cover all keys, so that sums over keys are shuffles. A block's kWarps warps cover kRows values,
// the slice of the head that the block works on; slices of a head are independent but for sums over
// values. Of its keys a thread owns every kKeyLanes-th quad: what the lanes read together is
// contiguous.
//
// kChunk tokens are staged in shared memory at a time; the backward pass starts from a state at
// each. The forward pass may keep states less often, at multiples of it.
template <int kSize, int kValuesPerThread, int kKeysPerThread, int kWarpsPerBlock>
struct StateTile {
  static constexpr int kN = kSize, kR = kValuesPerThread, kC = kKeysPerThread;
  static constexpr int kWarps = kWarpsPerBlock;
  static constexpr int kChunk = kN <= 64 ? 16 : 8;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kKeyLanes = kN / kC;
  static constexpr int kGroups = kWarp / kKeyLanes;  // of lanes with the same values, per warp
  static constexpr int kRows = kWarps * kGroups * kR;
  static constexpr int kSlices = kN / kRows;
  static constexpr int kQuads = kC / 4;
  static_assert(kKeyLanes <= kWarp && kWarp % kKeyLanes == 0 && kN % kRows == 0 && kC % 4 == 0);

  int lane, warp;

  __device__ StateTile() : lane(lane_number()), warp(warp_number()) {}
  __device__ int first_key(int quad) const {
    return (quad * kKeyLanes + lane % kKeyLanes) * 4;
  }
  // Within the slice.
  __device__ int first_row() const { return (warp * kGroups + lane / kKeyLanes) * kR; }

  // x[c] = row[own key c]
  __device__ __forceinline__ void load_keys(float (&x)[kC], const float* row) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float4 quad = *reinterpret_cast<const float4*>(row + first_key(q));
      x[4 * q] = quad.x, x[4 * q + 1] = quad.y, x[4 * q + 2] = quad.z, x[4 * q + 3] = quad.w;
    }
  }
  // x[i] = row[own value i]; row: of the slice
  __device__ __forceinline__ void load_rows(float (&x)[kR], const float* row) const {
    const float* const from = row + first_row();
    if constexpr (kR % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kR; i += 4) {
        const float4 quad = *reinterpret_cast<const float4*>(from + i);
        x[i] = quad.x, x[i + 1] = quad.y, x[i + 2] = quad.z, x[i + 3] = quad.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kR; ++i) x[i] = from[i];
    }
  }

  // row[own key c] = x[c], where x are sums over this warp's values as reduce_scatter leaves them:
  // the lanes with the same keys write a share each.
  __device__ __forceinline__ void store_key_sums(float (&x)[kC], float* row) const {
    reduce_scatter<kC, kGroups, kKeyLanes>(x, lane);
    if constexpr (kGroups == 1) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        *reinterpret_cast<float4*>(row + first_key(q)) =
            make_float4(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
      }
    } else {
      static_assert(kC == 4);
      float* const to = row + first_key(0) + first_sum_kept<kC, kGroups, kKeyLanes>(lane);
      if constexpr (kGroups == 2) *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
      else *to = x[0];
    }
  }
  // row[own value i] = x[i], x being sums over all keys, each written by one lane; row: of the
  // slice
  __device__ __forceinline__ void store_row_sums(float (&x)[kR], float* row) const {
    static_assert(kR <= kKeyLanes && kGroups <= 4);
    reduce_scatter<kR, kKeyLanes, 1>(x, lane);
    if (writes_sum<kR, kKeyLanes, 1>(lane)) {
      row[first_row() + first_sum_kept<kR, kKeyLanes, 1>(lane)] = x[0];
    }
  }

  // The thread's part of a state in memory, [rows of the slice][keys]; null stands for zero.
  __device__ __forceinline__ void load_state(float (&S)[kR][kC], const float* from) const {
#pragma unroll
    for (int i = 0; i < kR; ++i) {
      if (from == nullptr) {
#pragma unroll
        for (int c = 0; c < kC; ++c) S[i][c] = 0.0f;
      } else {
        load_keys(S[i], from + (first_row() + i) * kN);
      }
    }
  }
  __device__ __forceinline__ void store_state(const float (&S)[kR][kC], float* to) const {
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        *reinterpret_cast<float4*>(to + (first_row() + i) * kN + first_key(q)) =
            make_float4(S[i][4 * q], S[i][4 * q + 1], S[i][4 * q + 2], S[i][4 * q + 3]);
      }
    }
  }

  // The same through memory of the block that only this thread reads: kThreads * kR * kC floats.
  __device__ __forceinline__ void park_state(const float (&S)[kR][kC], float* slot) const {
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        *reinterpret_cast<float4*>(slot + parked_at(i, q)) =
            make_float4(S[i][4 * q], S[i][4 * q + 1], S[i][4 * q + 2], S[i][4 * q + 3]);
      }
    }
  }
  __device__ __forceinline__ void unpark_state(float (&S)[kR][kC], const float* slot) const {
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 quad = *reinterpret_cast<const float4*>(slot + parked_at(i, q));
        S[i][4 * q] = quad.x, S[i][4 * q + 1] = quad.y;
        S[i][4 * q + 2] = quad.z, S[i][4 * q + 3] = quad.w;
      }
    }
  }

 private:
  __device__ int parked_at(int i, int q) const {
    return ((i * kQuads + q) * kThreads + static_cast<int>(threadIdx.x)) * 4;
  }
};

// A tile that keeps the arithmetic units busy once there are enough heads to fill the card.
// kMostWarps: per block; large heads take as many, as far as shared memory allows.
template <int kN, int kMostWarps> using FullTile =
    StateTile<kN, kN == 64 || kN == 128 ? 8 : 4, kN == 256 ? 8 : 4,
              kN == 32   ? 2
              : kN == 64 ? 4
                         : kMostWarps>;

// A tile for few heads: more blocks per head, and less work per token and thread.
template <int kN> using WideTile = StateTile<kN, 2, 4, kN == 32 ? 2 : 4>;
template <int kN> constexpr bool kHasWide = kN <= 128;

}  // namespace rwkv
