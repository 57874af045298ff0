// Gives the CUDA kernels of WKV-6 to the operators that wkv6_ops.cpp defines.
#include <torch/library.h>

#include "../wkv5_6/wkv5_6_cuda_host.h"
#include "wkv6_cuda.h"

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("wkv6_forward",
         &rwkv::wkv5_6_forward_on_cuda<true, &rwkv_wkv6_forward_floats, &rwkv_wkv6_forward_cuda>);
  m.impl(
      "wkv6_backward",
      &rwkv::wkv5_6_backward_on_cuda<true, &rwkv_wkv6_backward_floats, &rwkv_wkv6_backward_cuda>);
}
