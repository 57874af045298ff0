// CUDA kernels of the gated head norm: launches.
#include "head_norm_gate_cuda.h"

#include "head_norm_gate_kernels.cuh"

namespace rwkv {
namespace head_norm_gate {

// run.template operator()<kLanes>(blocks) with the lanes of a head, and the blocks to launch.
template <typename Run> int with_lanes(const HeadNormSizes& p, Run run) {
  if (p.dtype == DType::kDouble) return kUnsupported;
  const int64_t blocks = parts_of(p.blocks()) * HeadNormPlace::groups(p);
  switch (p.size) {
    case 32: return run.template operator()<4>(blocks);
    case 64: return run.template operator()<8>(blocks);
    case 128: return run.template operator()<16>(blocks);
    case 256: return run.template operator()<32>(blocks);
    default: return kUnsupported;
  }
}

}  // namespace head_norm_gate
}  // namespace rwkv

int rwkv_head_norm_gate_forward_cuda(const rwkv::HeadNormForward& params, void* stream) {
  using namespace rwkv;
  return head_norm_gate::with_lanes(params, [&]<int kLanes>(int64_t blocks) {
    return launch(head_norm_gate_forward_kernel<kLanes>, blocks, kHeadNormThreads, 0, stream,
                  params);
  });
}

int rwkv_head_norm_gate_backward_cuda(const rwkv::HeadNormBackward& params, void* stream) {
  using namespace rwkv;
  const int64_t parts = parts_of(params.blocks());
  HeadNormBackward p = params;
  if (parts == 1) p.parts = p.gparams;
  const int code = head_norm_gate::with_lanes(p, [&]<int kLanes>(int64_t blocks) {
    return launch(head_norm_gate_backward_kernel<kLanes>, blocks, kHeadNormThreads,
                  kHeadNormSharedBytes, stream, p);
  });
  if (code != 0 || parts == 1) return code;
  return join_parts(static_cast<const float*>(p.parts), parts, 2 * p.width(),
                    static_cast<float*>(p.gparams), stream);
}
