// A thread's channels of one token, in fp32 registers, and between there and memory.
#pragma once

#include <type_traits>

#include "../common/gpu/vec8.cuh"

namespace rwkv {

struct Single {
  float at[1];
};

// A thread's channels, neighbours: 8, or 1 where not all rows of a tensor start at multiples of 16
// bytes.
template <int kChannels> using Channels = std::conditional_t<kChannels == kVec8, Vec8, Single>;

template <class Row> constexpr int kChannelsOf = static_cast<int>(sizeof(Row) / sizeof(float));

// base[index .. index + the channels of a Row)
template <class Row>
__device__ __forceinline__ Row load_row(const void* base, int64_t index, DType dtype) {
  if constexpr (kChannelsOf<Row> == kVec8) {
    return load_vec8(base, index, dtype);
  } else {
    if (dtype == DType::kFloat) return {{load_element<DType::kFloat>(base, index)}};
    if (dtype == DType::kHalf) return {{load_element<DType::kHalf>(base, index)}};
    return {{load_element<DType::kBFloat16>(base, index)}};
  }
}

// To global memory. nvcc takes plain stores of 16 bytes apart here, hence __stwb.
__device__ __forceinline__ void store_row(void* base, int64_t index, DType dtype, const Vec8& x) {
  if (dtype == DType::kFloat) {
    auto* const to = reinterpret_cast<float4*>(static_cast<float*>(base) + index);
    __stwb(to, make_float4(x.at[0], x.at[1], x.at[2], x.at[3]));
    __stwb(to + 1, make_float4(x.at[4], x.at[5], x.at[6], x.at[7]));
  } else {
    auto* const to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(base) + index);
    __stwb(to, pack_vec8(x, dtype));
  }
}

__device__ __forceinline__ void store_row(void* base, int64_t index, DType dtype, const Single& x) {
  if (dtype == DType::kFloat) return store_element<DType::kFloat>(base, index, x.at[0]);
  if (dtype == DType::kHalf) return store_element<DType::kHalf>(base, index, x.at[0]);
  store_element<DType::kBFloat16>(base, index, x.at[0]);
}

}  // namespace rwkv
