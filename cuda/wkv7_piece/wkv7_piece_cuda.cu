// CUDA kernels of WKV-7's pieces: which there are, and the launcher.
#include "wkv7_piece_cuda.h"

#include "../common/gpu_scan/tile_choice.cuh"
#include "wkv7_piece_scan.cuh"

namespace rwkv {
namespace {

template <class TileType> using Wkv7Forwards = Wkv7PieceBlock<TileType, false>;
template <class TileType> using Wkv7Backwards = Wkv7PieceBlock<TileType, true>;

template <template <class> class BlockOf>
int launch_wkv7_piece(const Wkv7Piece& p, const LaunchOptions& options, void* stream) {
  const auto run = [&]<class TileType>() {
    using Block = BlockOf<TileType>;
    const int64_t matrices = Block::kHasTransition ? 2 : 1;
    return launch(piece_scan_kernel<Block>, p.batch * p.heads * TileType::kSlices * matrices,
                  TileType::kThreads, typename Block::Shared(nullptr, p.dtype).bytes, stream, p);
  };
  return with_tile<8, BlockOf>(p, options.split, run, kUnsupported);
}

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv7_piece_run_floats(const rwkv::Wkv7Piece&, const rwkv::LaunchOptions&) {
  return 0;
}

int rwkv_wkv7_piece_run_cuda(const rwkv::Wkv7Piece& params, const rwkv::LaunchOptions& options,
                             float*, void* stream) {
  return params.backwards
             ? rwkv::launch_wkv7_piece<rwkv::Wkv7Backwards>(params, options, stream)
             : rwkv::launch_wkv7_piece<rwkv::Wkv7Forwards>(params, options, stream);
}
