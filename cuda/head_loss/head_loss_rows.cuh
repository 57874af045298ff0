// The loss of tokens and its gradient, in the place of their logits; formulas: head_loss_cpu.cpp.
#pragma once

#include "../common/gpu/vec8.cuh"
#include "../common/gpu/warp_reduce.cuh"
#include "head_loss_cuda.h"

namespace rwkv::head_loss {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
// Logits that a block has in registers at a time.
constexpr int kStride = kThreads * kVec8;
constexpr float kNone = -INFINITY;

// A thread's eight logits of a step: neighbours, or where not every row starts at a multiple of 16
// bytes (kNeighbours false) those that lie kThreads apart.
template <bool kNeighbours> struct Place {
  int first, vocabulary;

  __device__ Place(int begin, int vocabulary)
      : first(begin + static_cast<int>(threadIdx.x) * (kNeighbours ? kVec8 : 1)),
        vocabulary(vocabulary) {}

  __device__ int at(int k) const { return first + k * (kNeighbours ? 1 : kThreads); }
  __device__ bool has(int k) const { return at(k) < vocabulary; }

  // Of the row that starts at base; `other` stands where it has ended.
  __device__ Vec8 load(const void* base, DType dtype, float other) const {
    if constexpr (kNeighbours) {
      return has(0) ? load_vec8(base, first, dtype) : Vec8::of(other);
    } else {
      Vec8 x;
#pragma unroll
      for (int k = 0; k < kVec8; ++k) x.at[k] = has(k) ? load_one(base, at(k), dtype) : other;
      return x;
    }
  }
  __device__ void store(void* base, DType dtype, const Vec8& x) const {
    if constexpr (kNeighbours) {
      if (has(0)) store_vec8(base, first, dtype, x);
    } else {
#pragma unroll
      for (int k = 0; k < kVec8; ++k) {
        if (has(k)) store_one(base, at(k), dtype, x.at[k]);
      }
    }
  }

 private:
  __device__ static float load_one(const void* base, int index, DType dtype) {
    if (dtype == DType::kFloat) return load_element<DType::kFloat>(base, index);
    if (dtype == DType::kHalf) return load_element<DType::kHalf>(base, index);
    return load_element<DType::kBFloat16>(base, index);
  }
  __device__ static void store_one(void* base, int index, DType dtype, float x) {
    if (dtype == DType::kFloat) return store_element<DType::kFloat>(base, index, x);
    if (dtype == DType::kHalf) return store_element<DType::kHalf>(base, index, x);
    store_element<DType::kBFloat16>(base, index, x);
  }
};

// A thread's, a warp's or a row's largest logit and the first place where it stands.
struct Largest {
  float value;
  int position;

  __device__ void take(const Largest& other) {
    const bool equal = other.value == value;
    if (other.value > value || (equal && other.position < position)) *this = other;
  }
};

__device__ inline Largest largest_of_warp(Largest mine) {
#pragma unroll
  for (int mask = kWarp / 2; mask >= 1; mask /= 2) {
    const Largest other{__shfl_xor_sync(kAllLanes, mine.value, mask),
                        __shfl_xor_sync(kAllLanes, mine.position, mask)};
    mine.take(other);
  }
  return mine;
}

// Room in shared memory in which the warps of a block exchange a value each.
struct Exchange {
  float *values, *sums;
  int* positions;

  __device__ explicit Exchange(Pieces& pieces)
      : values(pieces.floats(kWarps)), sums(pieces.floats(kWarps)),
        positions(reinterpret_cast<int*>(pieces.floats(kWarps))) {}

  __device__ Largest largest(Largest mine) const {
    mine = largest_of_warp(mine);
    if (lane_number() == 0) {
      values[warp_number()] = mine.value;
      positions[warp_number()] = mine.position;
    }
    __syncthreads();
    return largest_of_warp({values[lane_number()], positions[lane_number()]});
  }
  __device__ float sum(float mine) const {
    mine = sum_over_lanes<kWarp>(mine);
    if (lane_number() == 0) sums[warp_number()] = mine;
    __syncthreads();
    return sum_over_lanes<kWarp>(sums[lane_number()]);
  }
};
static_assert(kWarps == kWarp);

// A thread's part of a row's sum of exp(z - M), with M the largest so far.
struct Online {
  Largest largest{kNone, INT32_MAX};
  float sum = 0.0f;

  // -inf - -inf is no number, but nothing has come by yet where M is still -inf.
  __device__ static float finite(float m) { return m == kNone ? 0.0f : m; }

  template <class At> __device__ __forceinline__ void take(const Vec8& z, const At& place) {
    Largest here = largest;
#pragma unroll
    for (int k = 0; k < kVec8; ++k) {
      if (z.at[k] > here.value) here = {z.at[k], place.at(k)};
    }
    const float shift = finite(here.value);
    sum *= expf(largest.value - shift);
#pragma unroll
    for (int k = 0; k < kVec8; ++k) sum += expf(z.at[k] - shift);
    largest = here;
  }
};

template <bool kNeighbours>
__device__ __forceinline__ Vec8 load_logits(const HeadLossRows& p, const Place<kNeighbours>& place,
                                            const char* base, int64_t start) {
  Vec8 z = place.load(base, p.dtype, kNone);
  if (p.extra != nullptr) {
    const char* const extra =
        static_cast<const char*>(p.extra) + start * element_bytes(p.extra_dtype);
    add_vec8(z, place.load(extra, p.extra_dtype, 0.0f));
  }
  return z;
}

// What a row's gradient is made of.
struct RowFacts {
  int target;
  Largest largest;
  float sum, weight;
};

// The second pass: reads the logits of a row once more and leaves their gradient.
template <bool kNeighbours>
__device__ __forceinline__ void put_gradient(const HeadLossRows& p, const RowFacts& row,
                                             char* base, int64_t start) {
  const float inverse = 1.0f / row.sum;
  const int vocabulary = static_cast<int>(p.vocabulary);
  for (int begin = 0; begin < vocabulary; begin += kStride) {
    const Place<kNeighbours> place(begin, vocabulary);
    Vec8 g = load_logits(p, place, base, start);
#pragma unroll
    for (int k = 0; k < kVec8; ++k) {
      float share = expf(g.at[k] - row.largest.value) * inverse;
      if (place.at(k) == row.target) share -= 1.0f;
      if (place.at(k) == row.largest.position) {
        share += static_cast<float>(kL2Wrap) * row.largest.value;
      }
      g.at[k] = row.weight * share;
    }
    // A narrower gradient is written where logits of this step and earlier ones have lain.
    if (p.gradient_dtype != p.dtype) __syncthreads();
    place.store(base, p.gradient_dtype, g);
    if (p.extra_gradient != nullptr) {
      char* const extra =
          static_cast<char*>(p.extra_gradient) + start * element_bytes(p.extra_dtype);
      place.store(extra, p.extra_dtype, g);
    }
  }
}

// What it computes: every token's loss and, if wanted, the gradient in the place of its logits.
// What a thread owns: eight logits of every 8192 of a row.
// What it gave up: one pass. A row of 65536 fp32 logits is more than shared memory holds; it is
// read a second time from the second-level cache, which holds one row for each multiprocessor.
template <bool kNeighbours>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ HeadLossRows p) {
  DYNAMIC_SHARED(memory);
  Pieces pieces(memory);
  const Exchange exchange(pieces);
  const int vocabulary = static_cast<int>(p.vocabulary);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t start = row * p.vocabulary;
    char* const base = static_cast<char*>(p.logits) + start * element_bytes(p.dtype);
    Online online;
    for (int begin = 0; begin < vocabulary; begin += kStride) {
      const Place<kNeighbours> place(begin, vocabulary);
      online.take(load_logits(p, place, base, start), place);
    }
    RowFacts facts;
    facts.largest = exchange.largest(online.largest);
    const float shift = Online::finite(facts.largest.value);
    facts.sum = exchange.sum(online.sum * expf(online.largest.value - shift));
    const int64_t target = p.targets[row];
    const bool known = target >= 0 && target < p.vocabulary;
    facts.target = known ? static_cast<int>(target) : -1;
    facts.weight = p.mask == nullptr ? 1.0f : static_cast<const float*>(p.mask)[row];
    // The one thread that has the target's logit.
    const int within = facts.target % kStride;
    const int owner = kNeighbours ? within / kVec8 : within % kThreads;
    if (static_cast<int>(threadIdx.x) == (known ? owner : 0)) {
      float at_target = NAN;  // of a target that is no token
      if (known) {
        const Place<kNeighbours> place(facts.target - within, vocabulary);
        const Vec8 z = load_logits(p, place, base, start);
#pragma unroll
        for (int k = 0; k < kVec8; ++k) {
          if (place.at(k) == facts.target) at_target = z.at[k];
        }
      }
      static_cast<float*>(p.losses)[row] = logf(facts.sum) + (facts.largest.value - at_target);
    }
    // The target's logit has been read before any gradient is written, and the exchange is free.
    __syncthreads();
    if (p.wants_gradient) put_gradient<kNeighbours>(p, facts, base, start);
  }
}

}  // namespace rwkv::head_loss
