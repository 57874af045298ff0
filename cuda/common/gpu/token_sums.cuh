// Gradients of parameters, summed over tokens in the order of ../params/token_blocks.h.
//
// A warp sums a run of 16 tokens in registers. A block of threads has the runs of four blocks of
// tokens, which it joins in shared memory, so that one part in four is written; a second kernel
// joins the parts.
#pragma once

#include "../params/token_blocks.h"
#include "device.cuh"

namespace rwkv {

constexpr int kRunTokens = 16;
constexpr int kRunsPerBlock = static_cast<int>(kBlockTokens) / kRunTokens;
constexpr int kRuns = kRunsPerBlock * kBlocksJoined;

// The tokens of one of a part's kRuns runs.
struct TokenRun {
  int64_t first;  // in [B T]
  int tokens;

  __device__ TokenRun(int64_t batch, int64_t time, int64_t part, int run) {
    const int64_t per_row = blocks_per_row(time);
    const int64_t block = part * kBlocksJoined + run / kRunsPerBlock;
    const int64_t begin = block % per_row * kBlockTokens + run % kRunsPerBlock * kRunTokens;
    const int64_t left = block < batch * per_row ? time - begin : 0;
    first = block / per_row * time + begin;
    tokens = static_cast<int>(left < 0 ? 0 : left < kRunTokens ? left : kRunTokens);
  }
};

// The part's sum of one column; sums: [kRuns][columns].
__device__ inline float sum_of_runs(const float* sums, int columns, int column) {
  float blocks[kBlocksJoined];
#pragma unroll
  for (int b = 0; b < kBlocksJoined; ++b) {
    const float* const runs = sums + b * kRunsPerBlock * columns + column;
    blocks[b] = runs[0];
#pragma unroll
    for (int run = 1; run < kRunsPerBlock; ++run) blocks[b] += runs[run * columns];
  }
  static_assert(kBlocksJoined == 4);
  return (blocks[0] + blocks[1]) + (blocks[2] + blocks[3]);
}

constexpr int kJoinWarps = 8;

// What it computes: to[columns], the sum over parts [count, columns], pairwise as a binary tree.
// What a thread owns: one column of an eighth of the parts.
// What it gave up: a column is read by one warp's lane alone, so few columns leave a card idle.
static __global__ void __launch_bounds__(kJoinWarps * kWarp)
    join_parts_kernel(const float* parts, int64_t count, int64_t columns, float* to) {
  __shared__ float joined[kJoinWarps][kWarp];
  const int lane = lane_number(), warp = warp_number();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  // Of each warp; a power of two, so that its sum is a branch of the tree.
  int64_t span = 1;
  while (span * kJoinWarps < count) span *= 2;
  const int64_t begin = warp * span, end = begin + span < count ? begin + span : count;
  // pending[i]: the sum of 2^i parts that waits for its partner, if bit i of the number of parts
  // read is set.
  constexpr int kLevels = 24;
  float pending[kLevels] = {};
  for (int64_t n = 0; begin + n < end && column < columns; ++n) {
    float sum = parts[(begin + n) * columns + column];
    bool carried = true;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const bool waits = (n >> level & 1) != 0;
      if (carried && waits) sum += pending[level];
      if (carried && !waits) {
        pending[level] = sum;
        carried = false;
      } else if (carried) {
        pending[level] = 0;
      }
    }
  }
  float sum = 0;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) sum += pending[level];
  joined[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  float pairs[kJoinWarps / 2];
#pragma unroll
  for (int i = 0; i < kJoinWarps / 2; ++i) pairs[i] = joined[2 * i][lane] + joined[2 * i + 1][lane];
  static_assert(kJoinWarps == 8);
  to[column] = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]);
}

inline int join_parts(const float* parts, int64_t count, int64_t columns, float* to,
                      void* stream) {
  return launch(join_parts_kernel, ceil_div(columns, kWarp), kJoinWarps * kWarp, 0, stream, parts,
                count, columns, to);
}

}  // namespace rwkv
