// Host side of the CUDA kernels of RWKV-5 and 6: picks a tile, launches, reports. No torch.
#pragma once

#include "../common/gpu_chunks/launch.cuh"
#include "wkv5_6_backward.cuh"
#include "wkv5_6_chunk_backward.cuh"
#include "wkv5_6_chunk_forward.cuh"
#include "wkv5_6_forward.cuh"
#include "../common/gpu_scan/tile_choice.cuh"

namespace rwkv {

constexpr int kOuterWarps = 8;

// The blocks of the kernels by chunks.
template <bool kDecayPerToken> struct OuterChunkBlocks {
  using Forward = OuterChunkForwardBlock<kDecayPerToken, true>;
  using States = OuterChunkForwardBlock<kDecayPerToken, false>;
  using Backward = OuterChunkBackwardBlock<kDecayPerToken>;
  using Gradients = OuterChunkChainBlock<kDecayPerToken>;
};

// Floats of memory that launch_outer_forward works in; 0 if it needs none.
template <bool kDecayPerToken>
int64_t outer_forward_floats(const OuterForward& p, const LaunchOptions& options) {
  return ChunkForwardPass<OuterChunkBlocks<kDecayPerToken>>(p, options).floats();
}

template <bool kDecayPerToken>
int launch_outer_forward(const OuterForward& p, const LaunchOptions& options, float* memory,
                         void* stream) {
  const ChunkForwardPass<OuterChunkBlocks<kDecayPerToken>> by_chunks(p, options);
  if (by_chunks.serves()) return by_chunks.run(memory, stream);
  if (by_chunks_alone(options.split)) return kUnsupported;
  const auto run = [&]<class TileType>() {
    const int64_t blocks = p.batch * p.heads * TileType::kSlices;
    const OuterForwardShared<TileType> shared(nullptr, p.dtype);
    return launch(outer_forward_kernel<TileType, kDecayPerToken>, blocks, TileType::kThreads,
                  shared.bytes, stream, p);
  };
  return with_tile<kOuterWarps, OuterForwardShared>(p, options.split, run, kUnsupported);
}

// What the replay kernels need of a backward pass.
inline OuterForward replay_params(const OuterBackward& p) {
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
    const auto replay = [&](const auto&... states) { return replay_range(states..., stream); };
    const auto run = [&](const auto&... states) { return run_range(states..., memory, stream); };
    const int error = memory_.for_ranges(p_.checkpoints, memory, replay, run);
    void* const totals[] = {p_.gu, p_.gw};
    return error != 0 ? error : memory_.add_totals(memory, totals, stream);
  }

 private:
  using ReplayTile = FullTile<TileType::kN, kOuterWarps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  // states: before every chunk
  int run_range(const TokenRange& range, const StatesAt<const float*>& states, float* memory,
                void* stream) const {
    const OuterBackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error = launch(outer_backward_kernel<TileType, kDecayPerToken>,
                             p_.batch * p_.heads * TileType::kSlices, TileType::kThreads,
                             shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kSumD, stream);
  }

  int replay_range(const TokenRange& range, const StatesAt<const float*>& from,
                   const StatesAt<float*>& to, void* stream) const {
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const OuterForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(outer_replay_kernel<ReplayTile, kDecayPerToken>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, replay_params(p_), range, from, to);
  }

  const OuterBackward& p_;
  const BackwardMemory<TileType> memory_;
};

// run.template operator()<Pass>() with the class of the backward pass that serves the call.
template <bool kDecayPerToken, typename Result, typename Run>
Result with_outer_backward_pass(const OuterBackward& p, const LaunchOptions& options, Run run,
                                Result otherwise) {
  using ByChunks = ChunkBackwardPass<OuterChunkBlocks<kDecayPerToken>>;
  if (ByChunks::serves(p, options)) return run.template operator()<ByChunks>();
  if (by_chunks_alone(options.split)) return otherwise;
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
