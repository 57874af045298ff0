// Gives the CUDA kernels of WKV-5 to the operators that wkv5_ops.cpp defines.
#include <torch/library.h>

#include "../wkv5_6/wkv5_6_cuda_host.h"
#include "wkv5_cuda.h"

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("wkv5_forward",
         &rwkv::wkv5_6_forward_on_cuda<false, &rwkv_wkv5_forward_floats, &rwkv_wkv5_forward_cuda>);
  m.impl(
      "wkv5_backward",
      &rwkv::wkv5_6_backward_on_cuda<false, &rwkv_wkv5_backward_floats, &rwkv_wkv5_backward_cuda>);
}
