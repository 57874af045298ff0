// Host side of the CUDA kernels of RWKV-5 and 6: which there are, and the launchers.
#pragma once

#include <array>

#include "../common/gpu_chunks/chunks_or_scans.cuh"
#include "wkv5_6_backward.cuh"
#include "wkv5_6_chunk_backward.cuh"
#include "wkv5_6_chunk_forward.cuh"
#include "wkv5_6_cuda.h"
#include "wkv5_6_forward.cuh"

namespace rwkv {

// What the replay kernels need of a backward pass.
inline Wkv5_6Forward replay_params(const Wkv5_6Backward& p) {
  Wkv5_6Forward forward{};
  static_cast<HeadSizes&>(forward) = p;
  forward.k = p.k, forward.v = p.v, forward.w = p.w, forward.base = p.base,
  forward.reset = p.reset;
  return forward;
}

template <bool kDecayPerToken> struct Wkv5_6Chunks {
  using Forward = Wkv5_6ChunkForwardBlock<kDecayPerToken, true>;
  using States = Wkv5_6ChunkForwardBlock<kDecayPerToken, false>;
  using Backward = Wkv5_6ChunkBackwardBlock<kDecayPerToken>;
  using Gradients = Wkv5_6ChunkChainBlock<kDecayPerToken>;
};

template <bool kDecayPerToken> struct Wkv5_6Scans {
  template <class TileType> using Forward = Wkv5_6ForwardBlock<TileType, kDecayPerToken, true>;
  template <class TileType> using States = Wkv5_6ForwardBlock<TileType, kDecayPerToken, false>;
  template <class TileType> using Backward = Wkv5_6BackwardBlock<TileType, kDecayPerToken>;

  static constexpr int kMostWarps = 8;
  static constexpr int64_t kResultOfW = kSumD;
  // In the order of Wkv5_6Sum; RWKV-5's gw is the second total instead.
  static std::array<void*, kWkv5_6Sums> results(const Wkv5_6Backward& p) {
    return {p.gr, p.gk, p.gw};
  }
  static std::array<void*, 2> totals(const Wkv5_6Backward& p) {
    return {p.gu, kDecayPerToken ? p.gbase : p.gw};
  }
};

template <bool kDecayPerToken> using Wkv5_6Choice =
    ChunksOrScans<Wkv5_6Chunks<kDecayPerToken>, Wkv5_6Scans<kDecayPerToken>>;

template <bool kDecayPerToken>
int64_t Wkv5_6Launchers<kDecayPerToken>::forward_floats(const Wkv5_6Forward& params,
                                                        const LaunchOptions& options) {
  return Wkv5_6Choice<kDecayPerToken>::forward_floats(params, options);
}

template <bool kDecayPerToken>
int64_t Wkv5_6Launchers<kDecayPerToken>::backward_floats(const Wkv5_6Backward& params,
                                                         const LaunchOptions& options) {
  return Wkv5_6Choice<kDecayPerToken>::backward_floats(params, options);
}

template <bool kDecayPerToken>
int Wkv5_6Launchers<kDecayPerToken>::forward_cuda(const Wkv5_6Forward& params,
                                                  const LaunchOptions& options, float* memory,
                                                  void* stream) {
  return Wkv5_6Choice<kDecayPerToken>::forward(params, options, memory, stream);
}

template <bool kDecayPerToken>
int Wkv5_6Launchers<kDecayPerToken>::backward_cuda(const Wkv5_6Backward& params,
                                                   const LaunchOptions& options, float* memory,
                                                   void* stream) {
  return Wkv5_6Choice<kDecayPerToken>::backward(params, options, memory, stream);
}

}  // namespace rwkv
