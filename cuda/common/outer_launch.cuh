// Host side of the CUDA kernels of RWKV-5 and 6: picks a tile, launches, reports. No torch.
#pragma once

#include "chunk_choice.cuh"
#include "outer_backward.cuh"
#include "outer_chunk_backward.cuh"
#include "outer_chunk_forward.cuh"
#include "outer_forward.cuh"
#include "ranges.cuh"
#include "tile_choice.cuh"

namespace rwkv {

constexpr int kOuterWarps = 8;

template <bool kDecayPerToken>
int launch_outer_forward(const OuterForward& p, const LaunchOptions& options, void* stream) {
  const int chunk_bytes = OuterChunkForwardShared(nullptr).bytes;
  if (takes_chunks(p, options.split, chunk_bytes)) {
    return launch(outer_chunk_forward_kernel<kDecayPerToken>, p.batch * p.heads,
                  ChunkTile::kThreads, chunk_bytes, stream, p);
  }
  if (options.split == kSplitChunks) return kUnsupported;
  const auto run = [&]<class TileType>() {
    const int64_t blocks = p.batch * p.heads * TileType::kSlices;
    const OuterForwardShared<TileType> shared(nullptr, p.dtype);
    return launch(outer_forward_kernel<TileType, kDecayPerToken>, blocks, TileType::kThreads,
                  shared.bytes, stream, p);
  };
  return with_tile<kOuterWarps, OuterForwardShared>(p, options.split, run, kUnsupported);
}

// What the replay kernels need of a backward pass.
inline OuterForward outer_replay_params(const OuterBackward& p) {
  OuterForward forward{};
  static_cast<HeadSizes&>(forward) = p;
  forward.k = p.k, forward.v = p.v, forward.w = p.w, forward.reset = p.reset;
  return forward;
}

// A backward pass of RWKV-5 or 6 with one kind of tile.
template <class TileType, bool kDecayPerToken> class OuterBackwardPass {
 public:
  OuterBackwardPass(const OuterBackward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, kDecayPerToken ? 3 : 2, kDecayPerToken ? 1 : 2) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    if (p_.kept > 1 && p_.keep_every % TileType::kChunk != 0) return kUnsupported;
    const int error = memory_.for_ranges(
        [&](const TokenRange& range) { return run_range(range, memory, stream); });
    void* const totals[] = {p_.gu, p_.gw};
    return error != 0 ? error : memory_.add_totals(memory, totals, stream);
  }

 private:
  using ReplayTile = FullTile<TileType::kN, kOuterWarps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  int run_range(const TokenRange& range, float* memory, void* stream) const {
    StatesAt<const float*> states = memory_.kept_states(p_.checkpoints);
    if (memory_.replays()) {
      const StatesAt<float*> to = memory_.chunk_states(memory, range);
      const int error = replay(range, states, to, stream);
      if (error != 0) return error;
      states = {to.base, to.every, to.count, to.first};
    }
    const OuterBackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error = launch(outer_backward_kernel<TileType, kDecayPerToken>,
                             p_.batch * p_.heads * TileType::kSlices, TileType::kThreads,
                             shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kSumD, stream);
  }

  int replay(const TokenRange& range, const StatesAt<const float*>& from,
             const StatesAt<float*>& to, void* stream) const {
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const OuterForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(outer_replay_kernel<ReplayTile, kDecayPerToken>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, outer_replay_params(p_), range, from, to);
  }

  const OuterBackward& p_;
  const BackwardMemory<TileType> memory_;
};

// A backward pass of RWKV-5 or 6 by chunks.
template <bool kDecayPerToken> class OuterChunkBackwardPass {
 public:
  OuterChunkBackwardPass(const OuterBackward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, 0, 0) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    if (p_.kept > 1 && p_.keep_every % ChunkTile::kChunk != 0) return kUnsupported;
    return memory_.for_ranges(
        [&](const TokenRange& range) { return run_range(range, memory, stream); });
  }

 private:
  int run_range(const TokenRange& range, float* memory, void* stream) const {
    StatesAt<const float*> states = memory_.kept_states(p_.checkpoints);
    const int64_t heads = p_.batch * p_.heads;
    if (memory_.replays()) {
      const StatesAt<float*> to = memory_.chunk_states(memory, range);
      const int64_t segments = ceil_div(range.end - range.begin, states.every);
      const int error = launch(outer_chunk_replay_kernel<kDecayPerToken>, heads * segments,
                               ChunkTile::kThreads, OuterChunkForwardShared(nullptr).bytes, stream,
                               outer_replay_params(p_), range, states, to);
      if (error != 0) return error;
      states = {to.base, to.every, to.count, to.first};
    }
    return launch(outer_chunk_backward_kernel<kDecayPerToken>, heads, ChunkTile::kThreads,
                  OuterChunkBackwardShared(nullptr).bytes, stream, p_, range, states);
  }

  const OuterBackward& p_;
  const BackwardMemory<ChunkTile> memory_;
};

// run.template operator()<Pass>() with the class of the backward pass that serves the call.
template <bool kDecayPerToken, typename Result, typename Run>
Result with_outer_backward_pass(const OuterBackward& p, const LaunchOptions& options, Run run,
                                Result otherwise) {
  if (takes_chunks(p, options.split, OuterChunkBackwardShared(nullptr).bytes)) {
    return run.template operator()<OuterChunkBackwardPass<kDecayPerToken>>();
  }
  if (options.split == kSplitChunks) return otherwise;
  const auto scan = [&]<class TileType>() -> Result {
    return run.template operator()<OuterBackwardPass<TileType, kDecayPerToken>>();
  };
  return with_tile<kOuterWarps, OuterBackwardShared>(p, options.split, scan, otherwise);
}

// Floats of memory that launch_outer_backward works in; 0 if it needs none.
template <bool kDecayPerToken>
int64_t outer_backward_floats(const OuterBackward& p, const LaunchOptions& options) {
  const auto run = [&]<class Pass>() { return Pass(p, options).floats(); };
  return with_outer_backward_pass<kDecayPerToken>(p, options, run, int64_t{0});
}

template <bool kDecayPerToken>
int launch_outer_backward(const OuterBackward& p, const LaunchOptions& options, float* memory,
                          void* stream) {
  const auto run = [&]<class Pass>() { return Pass(p, options).run(memory, stream); };
  return with_outer_backward_pass<kDecayPerToken>(p, options, run, kUnsupported);
}

}  // namespace rwkv
