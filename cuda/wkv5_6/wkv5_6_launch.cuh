// Host side of the CUDA kernels of RWKV-5 and 6: picks a tile, launches, reports. No torch.
#pragma once

#include "../common/gpu_chunks/chunk_launch.cuh"
#include "wkv5_6_backward.cuh"
#include "wkv5_6_chunk_backward.cuh"
#include "wkv5_6_chunk_forward.cuh"
#include "wkv5_6_forward.cuh"
#include "../common/gpu_scan/tile_choice.cuh"

namespace rwkv {

constexpr int kWkv5_6Warps = 8;

// The blocks of the kernels by chunks.
template <bool kDecayPerToken> struct Wkv5_6ChunkBlocks {
  using Forward = Wkv5_6ChunkForwardBlock<kDecayPerToken, true>;
  using States = Wkv5_6ChunkForwardBlock<kDecayPerToken, false>;
  using Backward = Wkv5_6ChunkBackwardBlock<kDecayPerToken>;
  using Gradients = Wkv5_6ChunkChainBlock<kDecayPerToken>;
};

// Floats of memory that launch_wkv5_6_forward works in; 0 if it needs none.
template <bool kDecayPerToken>
int64_t wkv5_6_forward_floats(const Wkv5_6Forward& p, const LaunchOptions& options) {
  return ChunkForwardPass<Wkv5_6ChunkBlocks<kDecayPerToken>>(p, options).floats();
}

template <bool kDecayPerToken> int launch_wkv5_6_forward(const Wkv5_6Forward& p,
                                                         const LaunchOptions& options,
                                                         float* memory, void* stream) {
  const ChunkForwardPass<Wkv5_6ChunkBlocks<kDecayPerToken>> by_chunks(p, options);
  if (by_chunks.serves()) return by_chunks.run(memory, stream);
  if (by_chunks_alone(options.split)) return kUnsupported;
  const auto run = [&]<class TileType>() {
    const int64_t blocks = p.batch * p.heads * TileType::kSlices;
    const Wkv5_6ForwardShared<TileType> shared(nullptr, p.dtype);
    return launch(wkv5_6_forward_kernel<TileType, kDecayPerToken>, blocks, TileType::kThreads,
                  shared.bytes, stream, p);
  };
  return with_tile<kWkv5_6Warps, Wkv5_6ForwardShared>(p, options.split, run, kUnsupported);
}

// What the replay kernels need of a backward pass.
inline Wkv5_6Forward replay_params(const Wkv5_6Backward& p) {
  Wkv5_6Forward forward{};
  static_cast<HeadSizes&>(forward) = p;
  forward.k = p.k, forward.v = p.v, forward.w = p.w, forward.reset = p.reset;
  return forward;
}

// A backward pass of RWKV-5 or 6 with one kind of tile.
template <class TileType, bool kDecayPerToken> class Wkv5_6BackwardPass {
 public:
  Wkv5_6BackwardPass(const Wkv5_6Backward& p, const LaunchOptions& options)
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
  using ReplayTile = FullTile<TileType::kN, kWkv5_6Warps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  // states: before every chunk
  int run_range(const TokenRange& range, const StatesAt<const float*>& states, float* memory,
                void* stream) const {
    const Wkv5_6BackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error = launch(wkv5_6_backward_kernel<TileType, kDecayPerToken>,
                             p_.batch * p_.heads * TileType::kSlices, TileType::kThreads,
                             shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kSumD, stream);
  }

  int replay_range(const TokenRange& range, const StatesAt<const float*>& from,
                   const StatesAt<float*>& to, void* stream) const {
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const Wkv5_6ForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(wkv5_6_replay_kernel<ReplayTile, kDecayPerToken>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, replay_params(p_), range, from, to);
  }

  const Wkv5_6Backward& p_;
  const BackwardMemory<TileType> memory_;
};

// run.template operator()<Pass>() with the class of the backward pass that serves the call.
template <bool kDecayPerToken, typename Result, typename Run>
Result with_wkv5_6_backward_pass(const Wkv5_6Backward& p, const LaunchOptions& options, Run run,
                                 Result otherwise) {
  using ByChunks = ChunkBackwardPass<Wkv5_6ChunkBlocks<kDecayPerToken>>;
  if (ByChunks::serves(p, options)) return run.template operator()<ByChunks>();
  if (by_chunks_alone(options.split)) return otherwise;
  const auto scan = [&]<class TileType>() -> Result {
    return run.template operator()<Wkv5_6BackwardPass<TileType, kDecayPerToken>>();
  };
  return with_tile<kWkv5_6Warps, Wkv5_6BackwardShared>(p, options.split, scan, otherwise);
}

// Floats of memory that launch_wkv5_6_backward works in; 0 if it needs none.
template <bool kDecayPerToken>
int64_t wkv5_6_backward_floats(const Wkv5_6Backward& p, const LaunchOptions& options) {
  const auto run = [&]<class Pass>() { return Pass(p, options).floats(); };
  return with_wkv5_6_backward_pass<kDecayPerToken>(p, options, run, int64_t{0});
}

template <bool kDecayPerToken> int launch_wkv5_6_backward(const Wkv5_6Backward& p,
                                                          const LaunchOptions& options,
                                                          float* memory, void* stream) {
  const auto run = [&]<class Pass>() { return Pass(p, options).run(memory, stream); };
  return with_wkv5_6_backward_pass<kDecayPerToken>(p, options, run, kUnsupported);
}

}  // namespace rwkv
