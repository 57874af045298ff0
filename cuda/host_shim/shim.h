// Runs the kernels' own source on a CPU: `g++ -x c++ -include cuda/host_shim/shim.h <op>_cuda.cu`.
//
// Stands in for the CUDA headers and nvcc's keywords, as far as our kernels use them. It checks
// what a GPU does not: every thread of a block must wait at the same barrier, shared memory starts
// as NaN, writes outside it are found, a copy by cp.async arrives only when the thread waits for
// it, and ldmatrix must meet no conflict of banks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define RWKV_HOST_SHIM 1

#include "runner.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
// One block runs at a time.
#define __shared__ static

#define threadIdx (::rwkv_shim::runner.current->thread)
#define blockIdx (::rwkv_shim::runner.block_index)
#define blockDim (::rwkv_shim::runner.block)
#define gridDim (::rwkv_shim::runner.grid)

#define RWKV_SHIM_PLACE(what) (::rwkv_shim::Place{what, __FILE__, __LINE__})
#define __syncthreads() \
  ::rwkv_shim::runner.wait(::rwkv_shim::Waits::kForBlock, RWKV_SHIM_PLACE("__syncthreads"))
#define __syncwarp(...) \
  ::rwkv_shim::runner.wait(::rwkv_shim::Waits::kForWarp, RWKV_SHIM_PLACE("__syncwarp"))
#define __shfl_xor_sync(mask, value, other)                                                  \
  ::rwkv_shim::runner.shuffle(value, ::rwkv_shim::runner.current->lane ^ (other),            \
                              RWKV_SHIM_PLACE("__shfl_xor_sync"))
#define __shfl_sync(mask, value, source) \
  ::rwkv_shim::runner.shuffle(value, source, RWKV_SHIM_PLACE("__shfl_sync"))

#define __ballot_sync(mask, predicate) \
  ::rwkv_shim::ballot(predicate, RWKV_SHIM_PLACE("__ballot_sync"))

#define LAUNCH(kernel, grid, block, bytes, stream, ...) \
  ((void)(stream), ::rwkv_shim::runner.launch(grid, block, bytes, [&] { kernel(__VA_ARGS__); }))
#define DYNAMIC_SHARED(name) unsigned char* const name = ::rwkv_shim::runner.shared

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

namespace rwkv_shim {

inline unsigned ballot(bool mine, const Place& place) {
  const auto* slots = runner.gather(mine, place);
  unsigned all = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) all |= unsigned{slots[lane].bytes[0] != 0} << lane;
  return all;
}

// from: null for zeros.
inline void copy_async(void* to, const void* from, size_t bytes) {
  std::memset(to, kPoison, bytes);
  runner.current->copies.push_back({to, from, bytes});
}

inline void commit_copies() {
  runner.current->copy_groups.push_back(std::move(runner.current->copies));
  runner.current->copies.clear();
}

// Lets all but the newest `pending` groups arrive.
inline void wait_for_copies(size_t pending) {
  auto& groups = runner.current->copy_groups;
  while (groups.size() > pending) {
    for (const PendingCopy& copy : groups.front()) {
      if (copy.from != nullptr) std::memcpy(copy.to, copy.from, copy.bytes);
      else std::memset(copy.to, 0, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

// ldmatrix of four matrices of 8 x 8 elements of 16 bits; a lane gives row lane % 8 of matrix
// lane / 8 and receives two elements of each: of a row, or transposed of a column. The eight rows
// of a matrix must lie in different banks: otherwise the result is right, but slow, and no test of
// numbers would notice.
inline void load_matrices(uint32_t (&x)[4], const uint16_t* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0 && runner.error.empty()) {
    runner.error = "ldmatrix: a row does not begin at a multiple of 16 bytes";
  }
  struct Row {
    uint16_t at[8];
    unsigned banks;  // which four of the 32
  } mine;
  std::memcpy(mine.at, row, sizeof mine.at);
  mine.banks = reinterpret_cast<uintptr_t>(row) / 16 % 8;
  const auto* slots = runner.gather(mine, RWKV_SHIM_PLACE("ldmatrix"));
  for (int i = 0; i < 4; ++i) {
    unsigned met = 0;
    for (int lane = i * 8; lane < i * 8 + 8; ++lane) {
      std::memcpy(&mine, slots[lane].bytes, sizeof(Row));
      met |= 1u << mine.banks;
    }
    if (met != 0xffu && runner.error.empty()) {
      runner.error = "ldmatrix: rows of a matrix lie in the same banks";
    }
  }
  const int g = runner.current->lane / 4, t = runner.current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    uint32_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int of_row = transposed ? 2 * t + j : g, of_column = transposed ? g : 2 * t + j;
      std::memcpy(&mine, slots[i * 8 + of_row].bytes, sizeof(Row));
      pair[j] = mine.at[of_column];
    }
    x[i] = pair[0] | pair[1] << 16;
  }
}

// movmatrix: an 8 x 8 matrix of 16 bits, two elements of row lane / 4 a lane, transposed.
inline uint32_t transpose_matrix(uint32_t x) {
  const auto* slots = runner.gather(x, RWKV_SHIM_PLACE("movmatrix"));
  const int g = runner.current->lane / 4, t = runner.current->lane % 4;
  uint32_t pair[2];
  for (int j = 0; j < 2; ++j) {
    uint16_t of_row[2];
    std::memcpy(of_row, slots[(2 * t + j) * 4 + g / 2].bytes, sizeof of_row);
    pair[j] = of_row[g % 2];
  }
  return pair[0] | pair[1] << 16;
}

// mma.sync m16n8k16 of bf16: D = A B + D, every lane holding its fragments as the hardware has
// them.
inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto* slots = runner.gather(mine, RWKV_SHIM_PLACE("mma.sync"));
  const auto of_lane = [&](int lane) {
    Fragments fragments;
    std::memcpy(&fragments, slots[lane].bytes, sizeof(Fragments));
    return fragments;
  };
  const auto value = [](uint32_t pair, int odd) {
    return float_of(odd ? pair & 0xffff0000u : pair << 16);
  };
  const int row = runner.current->lane / 4, column = runner.current->lane % 4 * 2;
  for (int k = 0; k < 16; ++k) {
    const int half = k / 8, lane = k % 8 / 2, odd = k % 2;
    const Fragments left = of_lane(row * 4 + lane);
    for (int j = 0; j < 2; ++j) {
      const float right = value(of_lane((column + j) * 4 + lane).b[half], odd);
      d[j] += value(left.a[half * 2], odd) * right;
      d[2 + j] += value(left.a[half * 2 + 1], odd) * right;
    }
  }
}

}  // namespace rwkv_shim

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };

template <typename Kernel> cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& runner = rwkv_shim::runner;
  *value = attribute == cudaDevAttrMultiProcessorCount ? runner.multiprocessors
                                                       : static_cast<int>(runner.most_shared_bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
  return rwkv_shim::runner.error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// For the tests: the message of the first fault since the last call, or an empty text.
extern "C" const char* rwkv_shim_take_error() {
  static std::string taken;
  taken = std::move(rwkv_shim::runner.error);
  rwkv_shim::runner.error.clear();
  return taken.c_str();
}

extern "C" void rwkv_shim_set_up(int descending, int multiprocessors, int most_shared_bytes) {
  auto& runner = rwkv_shim::runner;
  runner.order = descending ? rwkv_shim::Order::kDescending : rwkv_shim::Order::kAscending;
  runner.multiprocessors = multiprocessors;
  runner.most_shared_bytes = most_shared_bytes;
}
