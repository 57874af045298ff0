// CUDA kernels of norm_shift: launches.
#include "norm_shift_cuda.h"

#include "../common/gpu/token_runs.cuh"
#include "norm_shift_backward.cuh"
#include "norm_shift_forward.cuh"

namespace rwkv {
namespace {

// run.template operator()<kChannels>() with the channels of a thread.
template <typename Run> int with_norm_channels(const NormShiftSizes& p, Run run) {
  if (p.dtype == DType::kDouble) return kUnsupported;
  if (p.width % kVec8 == 0) {
    return p.width > kNormShiftWidest ? kUnsupported : run.template operator()<kVec8>();
  }
  return p.width > kNormShiftWidestOdd ? kUnsupported : run.template operator()<1>();
}

template <int kChannels> int norm_threads(const NormShiftSizes& p, int most) {
  const int row_threads = norm_row_threads(p.width, kChannels);
  return row_threads * norm_runs(row_threads, most);
}

int64_t norm_blocks(const NormShiftSizes& p) { return p.batch * sum_blocks_of_row(p.time); }

}  // namespace
}  // namespace rwkv

int rwkv_norm_shift_forward_cuda(const rwkv::NormShiftForward& params, void* stream) {
  using namespace rwkv;
  return with_norm_channels(params, [&]<int kChannels>() {
    return launch(norm_shift_forward_kernel<kChannels>, norm_blocks(params),
                  norm_threads<kChannels>(params, kNormThreads), kNormSharedBytes, stream, params);
  });
}

int rwkv_norm_shift_backward_cuda(const rwkv::NormShiftBackward& params, void* stream) {
  using namespace rwkv;
  const int code = with_norm_channels(params, [&]<int kChannels>() {
    const int threads = norm_threads<kChannels>(params, kNormBackwardThreads);
    const int shared =
        kNormSharedBytes + NormSums<kChannels>::bytes(norm_shift_sums(params), threads);
    return launch(norm_shift_backward_kernel<kChannels>, norm_blocks(params), threads, shared,
                  stream, params);
  });
  if (code != 0) return code;
  return join_pieces(static_cast<float*>(params.sums), norm_blocks(params),
                     norm_shift_sums(params) * params.width, static_cast<float*>(params.total),
                     stream);
}
