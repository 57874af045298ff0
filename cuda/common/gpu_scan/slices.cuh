// Results that are sums over all values of a head, when blocks hold only a slice of the values
// each: every block leaves its part in fp32, and a second kernel adds the parts in their order.
#pragma once

#include "head_place.cuh"

namespace rwkv {

// Where the parts lie: per head [total][slice][B, H, N], which are summed over all ranges of
// tokens, then per token [result][slice][B, tokens of the range, H, N].
struct SliceLayout {
  int64_t slices, results, totals, per_token, per_head;

  __host__ __device__ SliceLayout(const HeadSizes& p, int64_t tokens, int64_t slices,
                                  int64_t results, int64_t totals)
      : slices(slices), results(results), totals(totals),
        per_token(p.batch * tokens * p.heads * p.size), per_head(p.batch * p.heads * p.size) {}

  __host__ __device__ int64_t total(int64_t which, int64_t slice) const {
    return (which * slices + slice) * per_head;
  }
  __host__ __device__ int64_t result(int64_t which, int64_t slice) const {
    return total(totals, 0) + (which * slices + slice) * per_token;
  }
  // With one slice the results are written at once and nothing is left to add.
  __host__ __device__ int64_t floats() const { return slices == 1 ? 0 : result(results, 0); }
};

// How a block of kernels with kResults results per token and kTotals per head writes them.
template <class TileType, int kResults, int kTotals> class SliceSums {
 public:
  using Place = HeadPlace<TileType>;

  __device__ SliceSums(const HeadSizes& p, const TokenRange& range, float* parts)
      : layout_(p, range.end - range.begin, TileType::kSlices, kResults, kTotals), range_(range),
        parts_(parts) {}

  // Elements `at` .. at + 8 of token t's row of result `which`.
  __device__ void write(int which, void* result, const Place& place, int64_t t, int at, DType dtype,
                        const Vec8& x) const {
    if constexpr (TileType::kSlices == 1) {
      store_vec8(result, place.token(t) + at, dtype, x);
    } else {
      const int64_t token = place.row * (range_.end - range_.begin) + t - range_.begin;
      const int64_t index = (token * place.heads + place.head) * TileType::kN + at;
      store_floats(parts_ + layout_.result(which, place.slice) + index, x);
    }
  }
  // Adds to element `key` of the head's row of total `which`, or sets it in the first range met.
  __device__ void write_total(int which, void* total, const Place& place, int key, float x,
                              bool first) const {
    float* to = static_cast<float*>(total);
    if constexpr (TileType::kSlices > 1) to = parts_ + layout_.total(which, place.slice);
    const int64_t index = place.task * TileType::kN + key;
    to[index] = first ? x : to[index] + x;
  }

 private:
  const SliceLayout layout_;
  const TokenRange range_;
  float* const parts_;
};

constexpr int kAddThreads = 128;

// Rows of a tensor [rows, whole] of each of which elements first .. first + part take part.
struct PartOfRows {
  int64_t rows, part, whole, first;
};

// What it computes: the sum of `slices` fp32 arrays [rows, part] that lie one behind the other.
// What a thread owns: eight elements.
// What it gave up: one more pass over the parts in memory, to do without atomics: the order is
// fixed.
static __global__ void __launch_bounds__(kAddThreads)
    add_slices_kernel(const float* parts, int64_t slices, PartOfRows at, void* sum, DType dtype) {
  const int64_t count = at.rows * at.part;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x) * kVec8;
  if (index >= count) return;
  Vec8 total = load_floats(parts + index);
  for (int64_t slice = 1; slice < slices; ++slice) {
    add_vec8(total, load_floats(parts + slice * count + index));
  }
  const int64_t row = index / at.part, place = index - row * at.part;
  store_vec8(sum, row * at.whole + at.first + place, dtype, total);
}

// at.part, at.whole, at.first: multiples of 8. Returns 0 or the error's number.
inline int add_slices(const float* parts, int64_t slices, const PartOfRows& at, void* sum,
                      DType dtype, void* stream) {
  const int64_t blocks = ceil_div(at.rows * at.part, kAddThreads * kVec8);
  return launch(add_slices_kernel, blocks, kAddThreads, 0, stream, parts, slices, at, sum, dtype);
}

}  // namespace rwkv
