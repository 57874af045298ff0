// Sums over tokens in the order of ../params/token_blocks.h, and who takes which tokens: for
// operators that go over rows of channels without a state.
//
// A warp walks over one run of 16 tokens of 256 channels, 8 a lane; a block has four 64-token
// blocks' runs, so that two levels of the tree are joined before anything is written.
#pragma once

#include "../params/launch_options.h"
#include "../params/token_blocks.h"
#include "vec8.cuh"

namespace rwkv {

constexpr int kRunTokens = 16;
constexpr int kRunsOfBlock = static_cast<int>(kSumTokens) / kRunTokens;
constexpr int kJoinedBlocks = 4;
constexpr int kRunWarps = kRunsOfBlock * kJoinedBlocks;
constexpr int kRunThreads = kRunWarps * kWarp;
constexpr int kRunChannels = kWarp * kVec8;

// One thread's channels and the tokens of its warp, counted over the whole batch.
struct RunPlace {
  int64_t piece;           // of kJoinedBlocks blocks of tokens
  int64_t channel, begin;  // its first channel and token
  int tokens;              // 0 where there are none left
  bool has_channels;

  __device__ RunPlace(int64_t batch, int64_t time, int64_t width) {
    const int64_t groups = ceil_div(width, kRunChannels), per_row = sum_blocks_of_row(time);
    piece = blockIdx.x / groups;
    channel = blockIdx.x % groups * kRunChannels + lane_number() * kVec8;
    has_channels = channel < width;
    const int64_t block = piece * kJoinedBlocks + warp_number() / kRunsOfBlock;
    const int64_t row = block / per_row;
    const int64_t in_row = block % per_row * kSumTokens + warp_number() % kRunsOfBlock * kRunTokens;
    const int64_t left = time - in_row;
    begin = row * time + in_row;
    tokens = static_cast<int>(left < kRunTokens ? left : kRunTokens);
    if (row >= batch || left < 0) tokens = 0;
  }
};

inline int64_t run_pieces(int64_t batch, int64_t time) {
  return ceil_div(batch * sum_blocks_of_row(time), kJoinedBlocks);
}

inline int64_t run_blocks(int64_t batch, int64_t time, int64_t width) {
  return run_pieces(batch, time) * ceil_div(width, kRunChannels);
}

// run.template operator()<kLanes>() with the lanes of a head.
template <typename Sizes, typename Run> int with_head_lanes(const Sizes& p, Run run) {
  if (p.dtype == DType::kDouble) return kUnsupported;
  switch (p.size) {
    case 32: return run.template operator()<4>();
    case 64: return run.template operator()<8>();
    case 128: return run.template operator()<16>();
    case 256: return run.template operator()<32>();
    default: return kUnsupported;
  }
}

constexpr int kRunSharedBytes = kRunWarps * kRunChannels * static_cast<int>(sizeof(float));

// to[0 .. 8) of this thread's channels = the sums of the block's warps: runs in order, then blocks
// as a tree. shared: kRunSharedBytes, free again afterwards. All threads take part.
__device__ inline void join_runs(float* shared, const Vec8& sum, float* to, bool has_channels) {
  const int own = lane_number() * kVec8;
  store_floats(shared + warp_number() * kRunChannels + own, sum);
  __syncthreads();
  if (warp_number() == 0 && has_channels) {
    Vec8 blocks[kJoinedBlocks];
#pragma unroll
    for (int b = 0; b < kJoinedBlocks; ++b) {
      const float* const from = shared + b * kRunsOfBlock * kRunChannels + own;
      blocks[b] = load_floats(from);
#pragma unroll
      for (int run = 1; run < kRunsOfBlock; ++run) {
        add_vec8(blocks[b], load_floats(from + run * kRunChannels));
      }
    }
    add_vec8(blocks[0], blocks[1]);
    add_vec8(blocks[2], blocks[3]);
    add_vec8(blocks[0], blocks[2]);
    store_floats(to, blocks[0]);
  }
  __syncthreads();
}

constexpr int kJoinWarps = 8;

// What it computes: total [count] = the rows of sums [rows, count] joined as a tree, in place.
// What a thread owns: a column, of every kJoinWarps-th pair of a level.
// What it gave up: sums are read and written again at every level, all but the first from L2.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * kWarp)
    join_pieces_kernel(float* sums, int64_t rows, int64_t count, float* total) {
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane_number();
  for (int64_t step = 1; step < rows; step *= 2) {
    for (int64_t i = 2 * step * warp_number(); i + step < rows; i += 2 * step * kWarps) {
      if (column < count) sums[i * count + column] += sums[(i + step) * count + column];
    }
    __syncthreads();
  }
  if (warp_number() == 0 && column < count) total[column] = sums[column];
}

inline int join_pieces(float* sums, int64_t rows, int64_t count, float* total, void* stream) {
  return launch(join_pieces_kernel<kJoinWarps>, ceil_div(count, kWarp), kJoinWarps * kWarp, 0,
                stream, sums, rows, count, total);
}

}  // namespace rwkv
