// The products of decays inside a chunk of RWKV-5 and 6, as wkv5_6_chunk.cuh cuts it by halves.
#pragma once

#include "../common/gpu/fast_math.cuh"
#include "../common/gpu_chunks/chunk_tile.cuh"

namespace rwkv {

constexpr int kLevels = 3;  // h = 8, 4, 2

// The level at which tokens t != s are in different halves of the same block.
__device__ inline int level_of(int t, int s) { return __clz(t ^ s) - 28; }

// The products of decays that a thread's four keys and two tokens need. Threads that have the same
// keys tell each other their sums of logarithms by a butterfly over the pairs of tokens.
struct PairDecays {
  int pair;
  float4 d[FourKeys::kTokens];
  float4 of_pair, of_two, of_half;  // of the pair pair ^ 1, of the block of two pairs next to its
                                    // own, and of the chunk's other half

  // Returns the product over the chunk. logs: of the decays, to base 2. Their sums are exact to
  // more digits than products: what a state loses in a chunk it loses again in every one.
  __device__ __forceinline__ float4 find(const FourKeys& own,
                                         const float4 (&logs)[FourKeys::kTokens]) {
    pair = own.pair;
    float4 sum = logs[0];
    add_to(sum, logs[1]);
    of_pair = of_others(sum, 1);
    of_two = of_others(sum, 2);
    of_half = of_others(sum, 4);
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) d[i] = fast_exp2(logs[i]);
    return fast_exp2(sum);
  }

  // Whether the pair is in the second half of its block.
  __device__ bool in_second_half(int level) const { return (pair & 4 >> level) != 0; }
  // P and Q of both tokens.
  __device__ __forceinline__ void from_start(float4 (&factors)[FourKeys::kTokens]) const {
    factors[0] = product_of_others(true, true, true, true);
    factors[1] = times(factors[0], d[0]);
  }
  __device__ __forceinline__ void to_end(float4 (&factors)[FourKeys::kTokens]) const {
    factors[1] = product_of_others(false, true, true, true);
    factors[0] = times(factors[1], d[1]);
  }
  // p or q of both tokens.
  __device__ __forceinline__ void of_level(int level, float4 (&factors)[FourKeys::kTokens]) const {
    const bool second = in_second_half(level);
    const float4 near = product_of_others(second, level < 2, level < 1, false);
    const float4 far = times(near, choose(second, d[0], d[1]));
    factors[0] = choose(second, near, far);
    factors[1] = choose(second, far, near);
  }

 private:
  // The product that pair ^ bit has so far; adds its logarithm to the sum.
  __device__ __forceinline__ static float4 of_others(float4& sum, int bit) {
    const float4 other = FourKeys::of_pair(sum, bit);
    add_to(sum, other);
    return fast_exp2(other);
  }

  // The product over the pairs of tokens before this one, or behind it, as far as they are in the
  // blocks named.
  __device__ __forceinline__ float4 product_of_others(bool before, bool pairs, bool twos,
                                                      bool halves) const {
    float4 product = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    if (pairs && ((pair & 1) != 0) == before) product = of_pair;
    if (twos && ((pair & 2) != 0) == before) product = times(product, of_two);
    if (halves && ((pair & 4) != 0) == before) product = times(product, of_half);
    return product;
  }
};

}  // namespace rwkv
