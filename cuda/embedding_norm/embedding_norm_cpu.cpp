// CPU kernels of the embedding with its layer norm. With row E_i of token i, its mean m and
// rho = 1 / sqrt(variance + eps), x = (E_i - m) rho:
//
//   y_t = x w + b
//   G_i = sum of gy_t over all places of i      u = G_i w
//   gE_i = rho (u - mean(u) - x mean(u x))      gw = sum_i G_i x      gb = sum_i G_i
//
// The norm is linear in its gradient, so that one backward pass serves all places of a token.
#include "embedding_norm.h"

#include <algorithm>
#include <cmath>

#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/typed_rows.h"

namespace rwkv {
namespace {

// A row of the table, normalised: x padded with zeros to whole vectors.
template <typename T> struct NormalRow {
  const EmbeddingNormSizes& p;
  const int64_t padded;
  T *x, rho;

  NormalRow(const EmbeddingNormSizes& p, Scratch<T>& scratch)
      : p(p), padded((p.width + kLanes<T> - 1) / kLanes<T> * kLanes<T>) {
    scratch.want(x, padded);
  }

  void load_from(const void* table, int64_t id) {
    load_row(table, p.dtype, id * p.width, p.width, x);
    std::fill(x + p.width, x + padded, T(0));
    take_mean();
    // Once more: the mean of numbers far from zero is rounded, that of their differences exact.
    take_mean();
    const T square = dot<T>(x, x, padded) / T(p.width);
    rho = T(1) / std::sqrt(square + T(p.eps));
    for (int64_t i = 0; i < padded; i += kLanes<T>) store<T>(x + i, load<T>(x + i) * rho);
  }

  void take_mean() {
    const T mean = sum_of([&](int64_t i) { return load<T>(x + i); }) / T(p.width);
    for (int64_t i = 0; i < padded; i += kLanes<T>) store<T>(x + i, load<T>(x + i) - mean);
    std::fill(x + p.width, x + padded, T(0));
  }

  // The sum of of(i) over the row's vectors.
  template <typename Of> T sum_of(Of of) const {
    Vec<T> sum{};
    for (int64_t i = 0; i < padded; i += kLanes<T>) sum += of(i);
    return sum_lanes<T, 1>(&sum)[0];
  }
};

// Sums rows: blocks of kOccurrences in order, then these pairwise as a tree.
template <typename T> class PairwiseRows {
 public:
  PairwiseRows(const EmbeddingNormSizes& p, int64_t padded, Scratch<T>& scratch)
      : width_(p.width), padded_(padded) {
    for (T*& level : levels_) scratch.want(level, padded);
    scratch.want(row_, padded);
  }

  // The sum of the rows of gy at places[0 .. count); valid until the next call.
  const T* sum(const void* gy, DType dtype, const int64_t* places, int64_t count) {
    const int64_t blocks = (count + kOccurrences - 1) / kOccurrences;
    for (int64_t block = 0; block < blocks; ++block) {
      // The bits of the number of blocks so far say which levels hold a sum, of 2^level blocks.
      const int64_t begin = block * kOccurrences, end = std::min(begin + kOccurrences, count);
      int level = 0;
      while ((block >> level & 1) != 0) ++level;
      T* const to = levels_[level];
      clear_rows(to, padded_);
      for (int64_t i = begin; i < end; ++i) {
        load_row(gy, dtype, places[i] * width_, width_, row_);
        add(to, row_);
      }
      for (int lower = 0; lower < level; ++lower) add(to, levels_[lower]);
    }
    return join(blocks);
  }

 private:
  void add(T* to, const T* more) const {
    for (int64_t i = 0; i < padded_; i += kLanes<T>) {
      store<T>(to + i, load<T>(to + i) + load<T>(more + i));
    }
  }

  const T* join(int64_t blocks) const {
    T* total = nullptr;
    for (int level = 0; blocks >> level != 0; ++level) {
      if ((blocks >> level & 1) == 0) continue;
      if (total != nullptr) add(levels_[level], total);
      total = levels_[level];
    }
    return total;
  }

  // 2^26 blocks are more tokens than a batch has.
  T *levels_[26], *row_;
  const int64_t width_, padded_;
};

template <typename T> void forward(const EmbeddingNormForward& p, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  NormalRow<T> row(p, scratch);
  scratch.allocate();
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  for (int64_t t = begin; t < end; ++t) {
    row.load_from(p.table, p.ids[t]);
    for (int64_t i = 0; i < p.width; ++i) row.x[i] = row.x[i] * weight[i] + bias[i];
    store_row(p.y, p.dtype, t * p.width, p.width, row.x);
  }
}

template <typename T>
void put_row(const EmbeddingNormBackward& p, const NormalRow<T>& row, const T* u, T* out,
             int64_t id) {
  const T first = row.sum_of([&](int64_t i) { return load<T>(u + i); }) / T(p.width);
  const T second = dot<T>(u, row.x, row.padded) / T(p.width);
  for (int64_t i = 0; i < row.padded; i += kLanes<T>) {
    const Vec<T> x = load<T>(row.x + i);
    store<T>(out + i, (load<T>(u + i) - first - x * second) * row.rho);
  }
  store_row(p.gtable, p.dtype, id * p.width, p.width, out);
}

template <typename T>
void backward(const EmbeddingNormBackward& p, const int64_t* ids, const int64_t* starts,
              int64_t distinct, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  NormalRow<T> row(p, scratch);
  PairwiseRows<T> rows(p, row.padded, scratch);
  T *u, *out;
  scratch.want(u, row.padded);
  scratch.want(out, row.padded);
  scratch.allocate();
  const T* const weight = static_cast<const T*>(p.weight);
  for (int64_t task = begin; task < end; ++task) {
    T* const gweight = static_cast<T*>(p.sums) + task * 2 * p.width;
    T* const gbias = gweight + p.width;
    std::fill_n(gweight, 2 * p.width, T(0));
    const int64_t last = std::min((task + 1) * kDistinct, distinct);
    for (int64_t k = task * kDistinct; k < last; ++k) {
      row.load_from(p.table, ids[k]);
      const T* const sum = rows.sum(p.gy, p.dtype, p.order + starts[k], starts[k + 1] - starts[k]);
      for (int64_t i = 0; i < p.width; ++i) {
        gweight[i] += sum[i] * row.x[i];
        gbias[i] += sum[i];
        u[i] = sum[i] * weight[i];
      }
      if (p.gtable != nullptr) put_row(p, row, u, out, ids[k]);
    }
  }
}

}  // namespace

void embedding_norm_forward_cpu(const EmbeddingNormForward& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kDouble) forward<double>(p, begin, end);
  else forward<float>(p, begin, end);
}

void embedding_norm_backward_cpu(const EmbeddingNormBackward& p, const int64_t* ids,
                                 const int64_t* starts, int64_t distinct, int64_t begin,
                                 int64_t end) {
  if (p.dtype == DType::kDouble) backward<double>(p, ids, starts, distinct, begin, end);
  else backward<float>(p, ids, starts, distinct, begin, end);
}

}  // namespace rwkv
