// CUDA kernels of WKV-7: which there are, and the launchers.
#include "wkv7_cuda.h"

#include <array>

#include "../common/gpu_chunks/chunks_or_scans.cuh"
#include "wkv7_backward.cuh"
#include "wkv7_chunk_backward.cuh"
#include "wkv7_chunk_forward.cuh"
#include "wkv7_forward.cuh"

namespace rwkv {

// What the replay kernels need of a backward pass.
inline Wkv7Forward replay_params(const Wkv7Backward& p) {
  Wkv7Forward forward{};
  static_cast<HeadSizes&>(forward) = p;
  forward.k = p.k, forward.v = p.v, forward.a = p.a, forward.b = p.b;
  forward.w = p.w, forward.base = p.base, forward.reset = p.reset;
  return forward;
}

namespace {

struct Wkv7Chunks {
  using Forward = Wkv7ChunkForwardBlock<true>;
  using States = Wkv7ChunkForwardBlock<false>;
  using Backward = Wkv7ChunkBackwardBlock;
  using Gradients = Wkv7ChunkChainBlock;
};

struct Wkv7Scans {
  template <class TileType> using Forward = Wkv7ForwardBlock<TileType, true>;
  template <class TileType> using States = Wkv7ForwardBlock<TileType, false>;
  template <class TileType> using Backward = Wkv7BackwardBlock<TileType>;

  // Five sums over values per token leave shared memory for no more.
  static constexpr int kMostWarps = 4;
  static constexpr int64_t kResultOfW = kWkv7SumW;
  // In the order of Wkv7Sum.
  static std::array<void*, kWkv7Sums> results(const Wkv7Backward& p) {
    return {p.gr, p.gk, p.ga, p.gb, p.gw};
  }
  static std::array<void*, 2> totals(const Wkv7Backward& p) { return {p.gbase, p.gbonus}; }
};

using Wkv7Launchers = ChunksOrScans<Wkv7Chunks, Wkv7Scans>;

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv7_forward_floats(const rwkv::Wkv7Forward& params,
                                 const rwkv::LaunchOptions& options) {
  return rwkv::Wkv7Launchers::forward_floats(params, options);
}

int64_t rwkv_wkv7_backward_floats(const rwkv::Wkv7Backward& params,
                                  const rwkv::LaunchOptions& options) {
  return rwkv::Wkv7Launchers::backward_floats(params, options);
}

int rwkv_wkv7_forward_cuda(const rwkv::Wkv7Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream) {
  return rwkv::Wkv7Launchers::forward(params, options, memory, stream);
}

int rwkv_wkv7_backward_cuda(const rwkv::Wkv7Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  return rwkv::Wkv7Launchers::backward(params, options, memory, stream);
}
