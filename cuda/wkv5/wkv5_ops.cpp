// The operators of WKV-5 and their CPU kernels. The schema, which WKV-5 and 6 share:
// wkv5_6/wkv5_6_ops.h.
#include "../wkv5_6/wkv5_6_ops.h"

TORCH_LIBRARY_FRAGMENT(rwkv, m) { rwkv::define_wkv5_6(m, "wkv5"); }

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv5_forward", &rwkv::wkv5_6_forward_on_cpu<false>);
  m.impl("wkv5_backward", &rwkv::wkv5_6_backward_on_cpu<false>);
}
