// CPU kernels of the head's loss. Of a token with logits z, target t and mask weight c, M being the
// largest logit, j* the first place where it stands, and S = sum of exp(z - M):
//
//   loss = log S + M - z_t
//   gradient_j = c (exp(z_j - M) / S - [j = t] + [j = j*] 1e-4 M)
//
// A row is widened once into working memory that stays in the second-level cache, 256 KiB for 65536
// logits: main memory sees each logit read once and each gradient written once.
#include "head_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/cpu/exp.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/typed_rows.h"

namespace rwkv {
namespace {

// Logits that are widened, or added up, together: a piece of the first-level cache.
constexpr int64_t kPiece = 1024;

template <typename T> struct Row {
  const HeadLossRows& p;
  int64_t number, padded;
  T* z;      // [padded]: logits, then exp(z - M)
  T* piece;  // [kPiece]

  int64_t start() const { return number * p.vocabulary; }
  int64_t piece_end(int64_t begin) const { return std::min(begin + kPiece, p.vocabulary); }
  T weight() const { return p.mask == nullptr ? T(1) : static_cast<const T*>(p.mask)[number]; }
};

template <typename T> struct Largest {
  T value = -std::numeric_limits<T>::infinity();
  int64_t position = 0;  // the first where it stands
};

template <typename T> T largest_of(const T* z, int64_t count) {
  constexpr int L = kLanes<T>;
  Vec<T> largest = load<T>(z);
  for (int64_t i = L; i < count; i += L) {
    const Vec<T> more = load<T>(z + i);
    largest = largest > more ? largest : more;
  }
  T result = largest[0];
  for (int lane = 1; lane < L; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

// Fills row.z. NaN may pass by: it shows in the sum.
template <typename T> Largest<T> widen_row(const Row<T>& row) {
  const HeadLossRows& p = row.p;
  Largest<T> largest;
  std::fill(row.z + p.vocabulary, row.z + row.padded, largest.value);
  int64_t best = 0;
  for (int64_t begin = 0; begin < p.vocabulary; begin += kPiece) {
    const int64_t count = row.piece_end(begin) - begin;
    T* const z = row.z + begin;
    load_row(p.logits, p.dtype, row.start() + begin, count, z);
    if (p.extra != nullptr) {
      load_row(p.extra, p.extra_dtype, row.start() + begin, count, row.piece);
      for (int64_t i = 0; i < count; ++i) z[i] += row.piece[i];
    }
    const T here = largest_of(z, count);
    if (here > largest.value) largest.value = here, best = begin;
  }
  const T *const first = row.z + best, *const last = row.z + row.piece_end(best);
  // Where none is equal, NaN stands in every result.
  const T* const found = std::find(first, last, largest.value);
  largest.position = found == last ? best : found - row.z;
  return largest;
}

// Puts exp(z - largest) in the place of z; returns the sum.
template <typename T> T exponentiate(const Row<T>& row, T largest) {
  constexpr int kSums = 4;
  Vec<T> total{};
  for (int64_t begin = 0; begin < row.padded; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, row.padded);
    // Several, so that no addition waits for the one before; anew for every piece, since a single
    // running sum in fp32 would lose digits over a long row.
    Vec<T> sums[kSums] = {};
    int64_t i = begin;
    for (; i + kSums * kLanes<T> <= end; i += kSums * kLanes<T>) {
      for (int n = 0; n < kSums; ++n) {
        T* const z = row.z + i + n * kLanes<T>;
        const Vec<T> e = exp<T>(load<T>(z) - largest);
        store<T>(z, e);
        sums[n] += e;
      }
    }
    for (; i < end; i += kLanes<T>) {
      const Vec<T> e = exp<T>(load<T>(row.z + i) - largest);
      store<T>(row.z + i, e);
      sums[0] += e;
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  return sum_lanes<T, 1>(&total)[0];
}

template <typename T> void put(const Row<T>& row, int64_t begin, int64_t count, const T* from) {
  const HeadLossRows& p = row.p;
  // Narrower gradients leave the rest of their row's memory alone.
  char* const base = static_cast<char*>(p.logits) + row.start() * bytes_of(p.dtype);
  store_row(base, p.gradient_dtype, begin, count, from);
  if (p.extra_gradient != nullptr) {
    store_row(p.extra_gradient, p.extra_dtype, row.start() + begin, count, from);
  }
}

template <typename T>
void put_gradient(const Row<T>& row, int64_t target, const Largest<T>& largest, T sum) {
  const T weight = row.weight(), scale = weight / sum;
  for (int64_t begin = 0; begin < row.p.vocabulary; begin += kPiece) {
    const int64_t count = row.piece_end(begin) - begin;
    for (int64_t i = 0; i < count; ++i) row.piece[i] = row.z[begin + i] * scale;
    put(row, begin, count, row.piece);
  }
  for (const int64_t j : {target, largest.position}) {
    const T wrap = j == largest.position ? T(kL2Wrap) * largest.value : T(0);
    const T gradient = weight * ((row.z[j] / sum - (j == target ? T(1) : T(0))) + wrap);
    put(row, j, 1, &gradient);
  }
}

template <typename T> void work_through(const HeadLossRows& p, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const int64_t padded = (p.vocabulary + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  Row<T> row{p, begin, padded, nullptr, nullptr};
  scratch.want(row.z, padded);
  scratch.want(row.piece, kPiece);
  scratch.allocate();
  for (; row.number < end; ++row.number) {
    const int64_t target = p.targets[row.number];
    const Largest<T> largest = widen_row(row);
    const T at_target = row.z[target], sum = exponentiate(row, largest.value);
    static_cast<T*>(p.losses)[row.number] = std::log(sum) + (largest.value - at_target);
    if (p.wants_gradient) put_gradient(row, target, largest, sum);
  }
}

template <typename T> void mean(const HeadLossMean& p) {
  const T *losses = static_cast<const T*>(p.losses), *mask = static_cast<const T*>(p.mask);
  const int64_t blocks = (p.rows + kHeadLossBlock - 1) / kHeadLossBlock;
  double *const loss = p.sums, *const weight = p.sums + blocks;
  for (int64_t block = 0; block < blocks; ++block) {
    loss[block] = weight[block] = 0;
    const int64_t end = std::min((block + 1) * kHeadLossBlock, p.rows);
    for (int64_t i = block * kHeadLossBlock; i < end; ++i) {
      const double c = mask == nullptr ? 1.0 : static_cast<double>(mask[i]);
      loss[block] += static_cast<double>(losses[i]) * c;
      weight[block] += c;
    }
  }
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t block = 0; block + step < blocks; block += 2 * step) {
      loss[block] += loss[block + step];
      weight[block] += weight[block + step];
    }
  }
  const double sum = weight[0] > 0 ? weight[0] : 1.0;
  const double total = p.given_total > 0 ? p.given_total : sum;
  *static_cast<T*>(p.loss) = static_cast<T>(loss[0] / total);
  *static_cast<T*>(p.total) = static_cast<T>(total);
}

}  // namespace

void head_loss_rows_cpu(const HeadLossRows& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kDouble) work_through<double>(p, begin, end);
  else work_through<float>(p, begin, end);
}

void head_loss_mean_cpu(const HeadLossMean& p) {
  if (p.gradient_dtype == DType::kDouble) mean<double>(p);
  else mean<float>(p);
}

}  // namespace rwkv
