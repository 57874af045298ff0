// Host side of the kernels that go by chunks of tokens.
#pragma once

#include "chunk_walk.cuh"
#include "chunk_choice.cuh"
#include "ranges.cuh"

namespace rwkv {

template <class Block> int chunk_shared_bytes() {
  return typename Block::Shared(nullptr).bytes;
}

template <class Block>
int launch_chunk_forward(const typename Block::Params& p, void* stream) {
  return launch(chunk_forward_kernel<Block>, p.batch * p.heads, ChunkTile::kThreads,
                chunk_shared_bytes<Block>(), stream, p);
}

// A backward pass by chunks. Replay: the block of the replay kernel, whose parameters
// replay_params(p) gives.
template <class Block, class Replay> class ChunkBackwardPass {
 public:
  using Params = typename Block::Params;

  ChunkBackwardPass(const Params& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, 0, 0) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    const auto replay = [&](const TokenRange& range, const StatesAt<const float*>& from,
                            const StatesAt<float*>& to) {
      const int64_t segments = ceil_div(range.end - range.begin, from.every);
      return launch(chunk_replay_kernel<Replay>, p_.batch * p_.heads * segments,
                    ChunkTile::kThreads, chunk_shared_bytes<Replay>(), stream, replay_params(p_),
                    range, from, to);
    };
    const auto run_range = [&](const TokenRange& range, const StatesAt<const float*>& states) {
      return launch(chunk_backward_kernel<Block>, p_.batch * p_.heads, ChunkTile::kThreads,
                    chunk_shared_bytes<Block>(), stream, p_, range, states);
    };
    return memory_.for_ranges(p_.checkpoints, memory, replay, run_range);
  }

 private:
  const Params& p_;
  const BackwardMemory<ChunkTile> memory_;
};

}  // namespace rwkv
