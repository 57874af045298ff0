// CUDA kernels of the token shift: launches, reports.
#include "token_shift_cuda.h"

#include "token_shift_backward.cuh"
#include "token_shift_forward.cuh"

namespace rwkv {
namespace {

// Offsets are 64 bits wide, but the kernels multiply by a width of 31.
constexpr int64_t kWidest = INT32_MAX;

// run.template operator()<kChannels, kMoves>(blocks) with the channels of a thread, whether there
// are moves, and the blocks to launch.
template <class Params, typename Run> int with_shape(const Params& p, Run run) {
  if (p.dtype == DType::kDouble || p.width > kWidest) return kUnsupported;
  const int64_t tasks = p.batch * ceil_div(p.time, kShiftTokens);
  const auto with_channels = [&]<int kChannels>() {
    const int64_t blocks = tasks * ceil_div(p.width, ShiftPlace<kChannels>::kBlockChannels);
    return p.moves != nullptr ? run.template operator()<kChannels, true>(blocks)
                              : run.template operator()<kChannels, false>(blocks);
  };
  return p.width % kVec8 == 0 ? with_channels.template operator()<kVec8>()
                              : with_channels.template operator()<1>();
}

template <class Shared, class Params> int shared_bytes(const Params& p) {
  Pieces pieces(nullptr);
  Shared(pieces, p);
  return pieces.used();
}

}  // namespace
}  // namespace rwkv

int rwkv_token_shift_forward_cuda(const rwkv::TokenShiftForward& params, void* stream) {
  using namespace rwkv;
  return with_shape(params, [&]<int kChannels, bool kMoves>(int64_t blocks) {
    const int bytes = shared_bytes<ShiftForwardShared<Channels<kChannels>>>(params);
    return launch(token_shift_forward_kernel<kChannels, kMoves>, blocks, kShiftThreads, bytes,
                  stream, params);
  });
}

int rwkv_token_shift_backward_cuda(const rwkv::TokenShiftBackward& params, void* stream) {
  using namespace rwkv;
  return with_shape(params, [&]<int kChannels, bool kMoves>(int64_t blocks) {
    const int bytes = shared_bytes<ShiftBackwardShared<Channels<kChannels>>>(params);
    return launch(token_shift_backward_kernel<kChannels, kMoves>, blocks, kShiftThreads, bytes,
                  stream, params);
  });
}
