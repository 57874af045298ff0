// CUDA kernels of AdamW: launches, reports.
#include "adamw_cuda.h"

#include "adamw_norm.cuh"
#include "adamw_update.cuh"

int rwkv_adamw_norm_cuda(const rwkv::AdamwNorm& params, void* stream) {
  using namespace rwkv;
  if (params.table.chunks > 0) {
    const int code =
        launch(adamw_squares_kernel, params.table.chunks, kAdamwThreads, 0, stream, params);
    if (code != 0) return code;
  }
  return launch(adamw_norm_kernel, 1, kAdamwThreads, 0, stream, params);
}

int rwkv_adamw_update_cuda(const rwkv::AdamwUpdate& params, void* stream) {
  using namespace rwkv;
  if (params.table.chunks == 0) return 0;
  return launch(adamw_update_kernel, params.table.chunks, kAdamwThreads, 0, stream, params);
}
