// Checks of operator arguments and access to optional ones. A message says what was expected and
// what was given: "k must be [B, T, H, N] = [2, 64, 4, 64], got [2, 64, 256]".
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../params/dtypes.h"

namespace rwkv {

inline void check_shape(const at::Tensor& x, const char* name, const char* axes,
                        at::IntArrayRef shape) {
  TORCH_CHECK(x.sizes() == shape, name, " must be [", axes, "] = ", shape, ", got ", x.sizes());
}

inline void check_like(const at::Tensor& x, const char* name, const at::Tensor& model,
                       const char* model_name) {
  TORCH_CHECK(x.scalar_type() == model.scalar_type(), name, " must have dtype ",
              model.scalar_type(), " like ", model_name, ", got ", x.scalar_type());
  TORCH_CHECK(x.device() == model.device(), name, " must be on ", model.device(), " like ",
              model_name, ", got ", x.device());
}

inline void check_dtype(const at::Tensor& x, const char* name, at::ScalarType dtype) {
  TORCH_CHECK(x.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ",
              x.scalar_type());
}

// The kernels' name of an element type; raises for one they do not know.
inline DType dtype_of(at::ScalarType type, const char* name) {
  switch (type) {
    case at::kFloat: return DType::kFloat;
    case at::kDouble: return DType::kDouble;
    case at::kHalf: return DType::kHalf;
    case at::kBFloat16: return DType::kBFloat16;
    default:
      TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16, got ", type);
  }
}

inline DType dtype_of(const at::Tensor& x, const char* name) {
  return dtype_of(x.scalar_type(), name);
}

// The type in which states and sums are kept.
inline at::ScalarType computing_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline at::Tensor contiguous_or_undefined(const std::optional<at::Tensor>& x) {
  return x.has_value() ? x->contiguous() : at::Tensor();
}

inline const void* data_or_null(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

}  // namespace rwkv

// CHECK_SHAPE(k, B, T, H, N), with int64_t B, T, H, N in scope
#define CHECK_SHAPE(x, ...) ::rwkv::check_shape(x, #x, #__VA_ARGS__, {__VA_ARGS__})
#define CHECK_LIKE(x, model) ::rwkv::check_like(x, #x, model, #model)
#define CHECK_DTYPE(x, dtype) ::rwkv::check_dtype(x, #x, dtype)
