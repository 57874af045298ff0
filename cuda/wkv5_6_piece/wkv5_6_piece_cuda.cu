// CUDA kernels of RWKV-5's and 6's pieces: which there are, and the launcher.
#include "wkv5_6_piece_cuda.h"

#include "../common/gpu_scan/tile_choice.cuh"
#include "wkv5_6_piece_scan.cuh"

namespace rwkv {
namespace {

template <class TileType> using Wkv5Block = Wkv5_6PieceBlock<TileType, false>;
template <class TileType> using Wkv6Block = Wkv5_6PieceBlock<TileType, true>;

template <template <class> class BlockOf>
int launch_wkv5_6_piece(const Wkv5_6Piece& p, const LaunchOptions& options, void* stream) {
  const auto run = [&]<class TileType>() {
    using Block = BlockOf<TileType>;
    return launch(piece_scan_kernel<Block>, p.batch * p.heads * TileType::kSlices,
                  TileType::kThreads, typename Block::Shared(nullptr, p.dtype).bytes, stream, p);
  };
  return with_tile<8, BlockOf>(p, options.split, run, kUnsupported);
}

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv5_6_piece_run_floats(const rwkv::Wkv5_6Piece&, const rwkv::LaunchOptions&) {
  return 0;
}

int rwkv_wkv5_6_piece_run_cuda(const rwkv::Wkv5_6Piece& params, const rwkv::LaunchOptions& options,
                               float*, void* stream) {
  return params.decay_per_token
             ? rwkv::launch_wkv5_6_piece<rwkv::Wkv6Block>(params, options, stream)
             : rwkv::launch_wkv5_6_piece<rwkv::Wkv5Block>(params, options, stream);
}
