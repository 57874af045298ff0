// CPU kernels of the squared relu: z = relu(p)^2, gp = 2 relu(p) gz. NaN in p passes through.
#include "squared_relu.h"

#include "../common/cpu/pointwise_walk.h"

namespace rwkv {

void squared_relu_forward_cpu(const SquaredReluForward& params, int64_t begin, int64_t end) {
  walk_pointwise(params, begin, end, []<typename T>(const VecPerTensor<T, 1>& x) {
    const Vec<T> r = max<T>(0, x.at[0]);
    return VecPerTensor<T, 1>{{r * r}};
  });
}

void squared_relu_backward_cpu(const SquaredReluBackward& params, int64_t begin, int64_t end) {
  walk_pointwise(params, begin, end, []<typename T>(const VecPerTensor<T, 2>& x) {
    const Vec<T> gz = x.at[0], p = x.at[1];
    // Chosen, not multiplied: an infinite gz has no part in what relu cuts off.
    return VecPerTensor<T, 1>{{p <= T(0) ? Vec<T>{} : T(2) * p * gz}};
  });
}

}  // namespace rwkv
