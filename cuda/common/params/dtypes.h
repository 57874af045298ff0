// Element types of tensors as the kernels see them: plain numbers, no torch.
#pragma once

namespace rwkv {

enum class DType { kFloat, kDouble, kHalf, kBFloat16 };

template <typename T> constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::kDouble : DType::kFloat;

}  // namespace rwkv
