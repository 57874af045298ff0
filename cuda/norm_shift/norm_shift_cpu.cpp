// CPU kernels of norm_shift. Per token, with x' = x, x + out or x + s(gate) out, rounded:
//
//   n = (x' - mean) inverse      h = n weight + bias      delta = (h of the token before) - h
//   y_i = h + delta m_i          m_i = mixes_i + moves_i
//
//   p = sum_i gy_i      q = sum_i gy_i m_i      gh = p - q + (q of the next token)
//   gmoves_i = gy_i delta       gmixes_i = its sum over all tokens
//   u = gh weight      gx = inverse (u - mean u - n mean(u n)) + gx'
//   gweight = sum of gh n       gbias = sum of gh
//   gout = gx s(gate)           ggate = gx out s'(gate)
//
// A document start has no token before, and passes no q back. A task is a block of tokens of one
// batch row, of all channels, which are the lanes. Pointers are copied from the parameters before
// loops over channels: a store might change them, as far as the compiler knows.
#include "norm_shift_cpu_backward.h"
#include "norm_shift_cpu_forward.h"

namespace rwkv {

void norm_shift_forward_cpu(const NormShiftForward& p, int64_t begin, int64_t end) {
  norm_shift_rows::with_types(p, [&]<typename X, typename Y>() {
    norm_shift_rows::NormShiftForwardTask<X, Y> task(p);
    for (int64_t block = begin; block < end; ++block) task.run(TokenBlock(p.time, block));
  });
}

void norm_shift_backward_cpu(const NormShiftBackward& p, int64_t begin, int64_t end) {
  norm_shift_rows::with_types(p, [&]<typename X, typename Y>() {
    norm_shift_rows::NormShiftBackwardTask<X, Y> task(p);
    for (int64_t block = begin; block < end; ++block) task.run(TokenBlock(p.time, block), block);
  });
}

}  // namespace rwkv
