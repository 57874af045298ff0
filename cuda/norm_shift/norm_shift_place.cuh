// What the two passes of norm_shift share: which tokens and channels a thread has, and sums over the
// channels of a token.
//
// A row of threads owns all channels of a token, 8 (or 1) a thread, and walks over a run of 16
// tokens. A block has the runs of one 64-token block of the sums over tokens, as many side by side
// as fit a number of threads, the others after them.
#pragma once

#include "../common/gpu/warp_reduce.cuh"
#include "norm_shift_channels.cuh"
#include "norm_shift_cuda.h"

namespace rwkv {

constexpr int kNormThreads = 512, kNormRunTokens = 16;
constexpr int kNormRuns = static_cast<int>(kSumTokens) / kNormRunTokens;
constexpr int kNormWarps = kNormThreads / kWarp;
// Two numbers of every warp, twice, so that one barrier a sum is enough.
constexpr int kNormSharedBytes = 2 * 2 * kNormWarps * static_cast<int>(sizeof(float));

__host__ __device__ inline int norm_row_threads(int64_t width, int channels) {
  return static_cast<int>(ceil_div(width, int64_t{channels} * kWarp)) * kWarp;
}

// Runs side by side that fit `threads`, but one at least: a divisor of kNormRuns.
__host__ __device__ inline int norm_runs(int row_threads, int threads) {
  const int fitting = threads / row_threads;
  return fitting >= 4 ? 4 : fitting >= 2 ? 2 : 1;
}

template <int kChannels> struct NormPlace {
  using Row = Channels<kChannels>;

  int64_t row, block_begin;  // batch row; the block's first token in it
  int64_t time, width;
  int row_threads, runs, run, channel, slot = 0;
  float* const shared;

  __device__ NormPlace(const NormShiftSizes& p, float* shared, int threads = kNormThreads)
      : time(p.time), width(p.width), row_threads(norm_row_threads(p.width, kChannels)),
        runs(norm_runs(row_threads, threads)), shared(shared) {
    const int64_t per_row = sum_blocks_of_row(p.time);
    row = blockIdx.x / per_row;
    block_begin = blockIdx.x % per_row * kSumTokens;
    run = static_cast<int>(threadIdx.x) / row_threads;
    channel = static_cast<int>(threadIdx.x) % row_threads * kChannels;
  }

  __device__ bool has_channels() const { return channel < width; }
  // Where this thread's channels of a token (in its batch row) lie in a tensor [B, T, C].
  __device__ int64_t at(int64_t token) const { return (row * time + token) * width + channel; }

  __device__ Row load(const void* from, int64_t index, DType dtype) const {
    return from != nullptr && has_channels() ? load_row<Row>(from, index, dtype) : Row{};
  }
  __device__ Row load_vector(const void* from, int64_t i = 0) const {
    return load(from, i * width + channel, DType::kFloat);
  }
  __device__ void store(void* to, int64_t index, DType dtype, const Row& x) const {
    if (has_channels()) store_row(to, index, dtype, x);
  }

  // The sums of a and b over the row of threads, in all of them. All threads of the block take part.
  __device__ float2 sum_over_row(float a, float b) {
    a = sum_over_lanes<kWarp>(a), b = sum_over_lanes<kWarp>(b);
    float* const own = shared + slot * 2 * kNormWarps;
    slot ^= 1;
    if (lane_number() == 0) own[2 * warp_number()] = a, own[2 * warp_number() + 1] = b;
    __syncthreads();
    const int warps = row_threads / kWarp;
    const float* const first = own + 2 * run * warps;
    float2 sum = make_float2(first[0], first[1]);
    for (int w = 1; w < warps; ++w) sum.x += first[2 * w], sum.y += first[2 * w + 1];
    return sum;
  }
};

}  // namespace rwkv
