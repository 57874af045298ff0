// NCCL's number types on the host, one number at a time: the tests' tensors are small.
#pragma once

#include "standin.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <nccl.h>

#include <algorithm>
#include <cstdint>

namespace standin {

inline size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: give_up("the stand-in has no number type %d of NCCL", type);
  }
}

inline double read_number(const char* at, ncclDataType_t type) {
  switch (type) {
    case ncclInt8: return *reinterpret_cast<const int8_t*>(at);
    case ncclUint8: return *reinterpret_cast<const uint8_t*>(at);
    case ncclFloat16: return __half2float(*reinterpret_cast<const __half*>(at));
    case ncclBfloat16: return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at));
    case ncclInt32: return *reinterpret_cast<const int32_t*>(at);
    case ncclUint32: return *reinterpret_cast<const uint32_t*>(at);
    case ncclFloat32: return *reinterpret_cast<const float*>(at);
    case ncclInt64: return *reinterpret_cast<const int64_t*>(at);
    case ncclUint64: return *reinterpret_cast<const uint64_t*>(at);
    case ncclFloat64: return *reinterpret_cast<const double*>(at);
    default: give_up("the stand-in has no number type %d of NCCL", type);
  }
}

inline void write_number(char* at, ncclDataType_t type, double value) {
  switch (type) {
    case ncclInt8: *reinterpret_cast<int8_t*>(at) = static_cast<int8_t>(value); break;
    case ncclUint8: *reinterpret_cast<uint8_t*>(at) = static_cast<uint8_t>(value); break;
    case ncclFloat16: *reinterpret_cast<__half*>(at) = __float2half(value); break;
    case ncclBfloat16:
      *reinterpret_cast<__nv_bfloat16*>(at) = __float2bfloat16(value);
      break;
    case ncclInt32: *reinterpret_cast<int32_t*>(at) = static_cast<int32_t>(value); break;
    case ncclUint32: *reinterpret_cast<uint32_t*>(at) = static_cast<uint32_t>(value); break;
    case ncclFloat32: *reinterpret_cast<float*>(at) = static_cast<float>(value); break;
    case ncclInt64: *reinterpret_cast<int64_t*>(at) = static_cast<int64_t>(value); break;
    case ncclUint64: *reinterpret_cast<uint64_t*>(at) = static_cast<uint64_t>(value); break;
    case ncclFloat64: *reinterpret_cast<double*>(at) = value; break;
    default: give_up("the stand-in has no number type %d of NCCL", type);
  }
}

inline double combined(double one, double other, ncclRedOp_t op) {
  switch (op) {
    case ncclSum:
    case ncclAvg: return one + other;
    case ncclProd: return one * other;
    case ncclMax: return std::max(one, other);
    case ncclMin: return std::min(one, other);
    default: give_up("the stand-in has no reduction %d of NCCL", op);
  }
}

}  // namespace standin
