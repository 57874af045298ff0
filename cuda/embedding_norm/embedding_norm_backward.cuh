// Backward pass of the embedding with its norm; formulas: embedding_norm_cpu.cpp. Tokens are sorted
// by id: the places of one id lie side by side, and its first place stands for it.
#pragma once

#include "embedding_norm_rows.cuh"

namespace rwkv::embedding_norm {

// The places [begin, end) of one id.
struct Places {
  int64_t begin, end;

  __device__ int64_t count() const { return end - begin; }
  __device__ int64_t blocks() const { return ceil_div(count(), kOccurrences); }
  // Where a block's sum lies. Of the blocks that begin in one window of kOccurrences places at most
  // one is the first of its id, and at most one is not.
  __device__ int64_t slot(int64_t block) const {
    return 2 * ((begin + block * kOccurrences) / kOccurrences) + (block == 0 ? 1 : 0);
  }
};

// The first place from `low` on whose id is above `id` (or, with equal, not below it).
__device__ inline int64_t search(const CudaBackward& p, int64_t low, int id, bool equal) {
  int64_t high = p.tokens;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int found = p.sorted[middle];
    if (found > id || (equal && found == id)) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Channels c .. of the sum over the places [begin, end).
template <int kChannels>
__device__ __forceinline__ Row<kChannels> sum_places(const CudaBackward& p, int64_t begin,
                                                     int64_t end, int64_t c) {
  Row<kChannels> sum{};
  for (int64_t i = begin; i < end; ++i) {
    const auto more = load_channels<kChannels>(p.gy, p.order[i] * p.width + c, p.dtype);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) sum.at[k] += more.at[k];
  }
  return sum;
}

// What it computes: of ids with more than kOccurrences places the sums of blocks of so many.
// What a warp owns: the block that begins at its place, if one does.
// What it gave up: warps, most of which find nothing to do; nobody else knows where blocks begin.
template <int kChannels>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    blocks_kernel(const __grid_constant__ CudaBackward p) {
  const int64_t place = int64_t{blockIdx.x} * kMostWarps + warp_number();
  if (place >= p.tokens) return;
  const int id = p.sorted[place];
  const int64_t behind = place + kOccurrences, before = place - kOccurrences;
  const bool more = behind < p.tokens && p.sorted[behind] == id;
  if (!more && (before < 0 || p.sorted[before] != id)) return;
  const Places places{search(p, 0, id, true), search(p, place, id, false)};
  const int64_t offset = place - places.begin;
  if (offset % kOccurrences != 0) return;
  const int64_t end = behind < places.end ? behind : places.end;
  const int64_t to = places.slot(offset / kOccurrences) * p.width;
  for_channels<kChannels>(p.width, [&](int64_t c) {
    store_channels(p.blocks, to + c, DType::kFloat, sum_places<kChannels>(p, place, end, c));
  });
}

// Joins the sums of an id's blocks pairwise, in their own memory; a lane touches its channels only.
template <int kChannels>
__device__ __forceinline__ Row<kChannels> join_blocks(const CudaBackward& p, const Places& places,
                                                      int64_t c) {
  const int64_t blocks = places.blocks();
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t block = 0; block + step < blocks; block += 2 * step) {
      const int64_t to = places.slot(block) * p.width + c;
      auto sum = load_channels<kChannels>(p.blocks, to, DType::kFloat);
      const auto more = load_channels<kChannels>(
          p.blocks, places.slot(block + step) * p.width + c, DType::kFloat);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) sum.at[k] += more.at[k];
      store_channels(p.blocks, to, DType::kFloat, sum);
    }
  }
  return load_channels<kChannels>(p.blocks, places.slot(0) * p.width + c, DType::kFloat);
}

// One id: its row's gradient, and what it adds to those of weight and bias.
template <int kChannels> struct IdBackward {
  const CudaBackward& p;
  const Places& places;
  const NormalRow<kChannels> row;
  float *gy, *gweight, *gbias;  // gy: [C], the sum over the places, in shared memory

  __device__ void run(int64_t id) const {
    float first = 0, second = 0;
    for_channels<kChannels>(p.width, [&](int64_t c) {
      const Row<kChannels> sum = places.count() > kOccurrences
                                     ? join_blocks<kChannels>(p, places, c)
                                     : sum_places<kChannels>(p, places.begin, places.end, c);
      store_channels(gy, c, DType::kFloat, sum);
      const Row<kChannels> x = row.load(c);
      const auto weight = load_channels<kChannels>(p.weight, c, DType::kFloat);
      auto to_weight = load_channels<kChannels>(gweight, c, DType::kFloat);
      auto to_bias = load_channels<kChannels>(gbias, c, DType::kFloat);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        const float u = sum.at[k] * weight.at[k];
        first += u;
        second += u * x.at[k];
        to_weight.at[k] += sum.at[k] * x.at[k];
        to_bias.at[k] += sum.at[k];
      }
      store_channels(gweight, c, DType::kFloat, to_weight);
      store_channels(gbias, c, DType::kFloat, to_bias);
    });
    if (p.gtable == nullptr) return;
    const float width = static_cast<float>(p.width);
    first = sum_over_lanes<kWarp>(first) / width;
    second = sum_over_lanes<kWarp>(second) / width;
    for_channels<kChannels>(p.width, [&](int64_t c) {
      const auto sum = load_channels<kChannels>(gy, c, DType::kFloat);
      const auto weight = load_channels<kChannels>(p.weight, c, DType::kFloat);
      Row<kChannels> x = row.load(c);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        x.at[k] = row.rho * (sum.at[k] * weight.at[k] - first - x.at[k] * second);
      }
      store_channels(p.gtable, id * p.width + c, p.dtype, x);
    });
  }
};

// What it computes: gtable, and per task the sums that the gradients of weight and bias are made of.
// What a warp owns: the ids whose first place is one of kPlaces, one after the other.
// What it gave up: sharing an id's places among warps, beyond the blocks that are added up already.
template <int kChannels>
__global__ void __launch_bounds__(kMostWarps* kWarp, 4)
    backward_kernel(const __grid_constant__ CudaBackward p) {
  DYNAMIC_SHARED(memory);
  const int64_t warps = static_cast<int64_t>(blockDim.x) / kWarp;
  const int64_t task = int64_t{blockIdx.x} * warps + warp_number();
  const int64_t first = task * kPlaces;
  if (first >= p.tokens) return;
  // Rounded up, so that every warp's part begins at a multiple of 16 bytes.
  float* const gy = reinterpret_cast<float*>(memory) + warp_number() * ((p.width + 3) / 4 * 4);
  float* const gweight = static_cast<float*>(p.sums) + task * 2 * p.width;
  float* const gbias = gweight + p.width;
  for_channels<kChannels>(p.width, [&](int64_t c) {
    store_channels(gweight, c, DType::kFloat, Row<kChannels>{});
    store_channels(gbias, c, DType::kFloat, Row<kChannels>{});
  });
  const int64_t last = first + kPlaces < p.tokens ? first + kPlaces : p.tokens;
  for (int64_t place = first; place < last; ++place) {
    const int id = p.sorted[place];
    const bool begins = place == 0 || p.sorted[place - 1] != id;
    // The forward pass has left NaN for a token without a row.
    if (!begins || id < 0 || id >= p.vocabulary) continue;
    const Places places{place, search(p, place, id, false)};
    const IdBackward<kChannels> backward{p,  places, NormalRow<kChannels>(p, p.table, id),
                                         gy, gweight, gbias};
    backward.run(id);
  }
}

}  // namespace rwkv::embedding_norm
