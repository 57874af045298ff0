// CPU kernels of WKV-6: the recurrence that RWKV-5 and 6 share, with a decay per token.
#include "wkv6.h"

#include "../wkv5_6/wkv5_6_cpu_heads.h"

namespace rwkv {

void wkv6_forward_cpu(const Wkv5_6Forward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<Wkv6ForwardHeads>(params, most, begin, end);
}

void wkv6_backward_cpu(const Wkv5_6Backward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<Wkv6BackwardHeads>(params, most, begin, end);
}

}  // namespace rwkv
