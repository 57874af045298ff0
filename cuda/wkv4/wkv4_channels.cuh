// What the kernels of RWKV-4 share: channels, segments of the time axis, the scaled sums.
//
// The sums a = aa exp(pp) and b = bb exp(pp) of a stretch of tokens, the adjoints A exp(R) and
// B exp(R) likewise, join associatively: besides them only how much the stretch
// decays what came before it must be known. So the tokens are cut into segments that run at the
// same time: first every segment from an empty state, then a short scan over segments, then every
// segment again from the state it really starts with.
#pragma once

#include "../common/gpu/copy_async.cuh"
#include "../common/gpu/vec8.cuh"
#include "wkv4.h"

namespace rwkv {

constexpr int kWkv4Threads = 128;  // of a block, each with one channel
constexpr int kWkv4Chunk = 16;     // tokens fetched at a time, and between kept states
constexpr float kEmptyScale = static_cast<float>(kWkv4EmptyExponent);

__device__ inline float wkv4_log_decay(float w) {
  // Written so that NaN stays NaN.
  constexpr float kLargest = static_cast<float>(kWkv4LargestLogRate);
  return -expf(w > kLargest ? kLargest : w);
}

// A stretch of tokens as the sums of it alone, and the exponent by which it decays earlier sums
// (kEmptyScale if a document starts in it). An adjoint stretch has A, B, R for aa, bb, pp.
struct Stretch {
  float aa, bb, pp, decay;
  // What rounding took from pp: a step is added to it per token, and exp() would turn the sum of
  // thousands of roundings into as large a relative error of the sums.
  float rest;

  __device__ static Stretch empty() { return {0.0f, 0.0f, kEmptyScale, 0.0f, 0.0f}; }

  // Adds x exp(exponent) to a and y exp(exponent) to b, after decaying both by exp(step).
  __device__ __forceinline__ void add(float step, float exponent, float x, float y) {
    const float sum = pp + step, added = sum - pp;
    rest += (pp - (sum - added)) + (step - added);
    const float ahead = exponent - sum - rest;
    const float factor = expf(ahead > 0.0f ? -ahead : ahead);
    if (ahead > 0.0f) {
      aa = factor * aa + x;
      bb = factor * bb + y;
      pp = exponent, rest = 0.0f;
    } else {
      aa += factor * x;
      bb += factor * y;
      pp = sum;
    }
  }
  // The same sums without a rest.
  __device__ __forceinline__ void fold() {
    const float factor = expf(rest);
    aa *= factor, bb *= factor, rest = 0.0f;
  }
  // What earlier sums become through this stretch.
  __device__ Stretch after(const Stretch& earlier) const {
    Stretch joined = earlier;
    joined.add(decay, pp, aa, bb);
    return joined;
  }
  // A document starts: everything before it is gone.
  __device__ void forget() { *this = {0.0f, 0.0f, kEmptyScale, kEmptyScale, 0.0f}; }
};

// What the sums before a token and the token itself weigh in its output, when the token's exponent
// lies `ahead` of theirs; the greater weight is 1.
struct Weights {
  float before, now;

  __device__ __forceinline__ explicit Weights(float ahead) {
    const float factor = expf(ahead > 0.0f ? -ahead : ahead);
    before = ahead > 0.0f ? factor : 1.0f;
    now = ahead > 0.0f ? 1.0f : factor;
  }
};

// How the tokens are cut: `count` segments of `tokens` tokens, the last one maybe shorter.
struct Segments {
  int64_t count, tokens;
};

// One thread's channel in one segment of one batch row.
struct Wkv4Place {
  int64_t row, segment, channel, first_channel, begin, end;
  bool exists;

  __device__ Wkv4Place(const Wkv4Sizes& p, const Segments& segments) {
    const int64_t groups = ceil_div(p.width, kWkv4Threads), block = blockIdx.x;
    first_channel = block % groups * kWkv4Threads;
    segment = block / groups % segments.count;
    row = block / groups / segments.count;
    channel = first_channel + threadIdx.x;
    exists = channel < p.width;
    begin = segment * segments.tokens;
    end = begin + segments.tokens < p.time ? begin + segments.tokens : p.time;
  }
  __device__ int64_t token(const Wkv4Sizes& p, int64_t t) const {
    return (row * p.time + t) * p.width + channel;
  }
};

// Which of the tokens from t on begin a document, a bit each; all lanes of a warp take part. reset:
// as in the call, or null.
__device__ inline unsigned document_starts(const bool* reset, const Wkv4Sizes& p,
                                           const Wkv4Place& place, int64_t t, int tokens) {
  if (reset == nullptr) return 0;
  const int own = lane_number();
  return __ballot_sync(kAllLanes, own < tokens && reset[place.row * p.time + t + own]);
}

// [count][rows][width] floats per batch row, of which a thread reads and writes its channel.
struct ChannelRows {
  float* base;
  int64_t count, rows, width;

  __device__ float* at(int64_t batch_row, int64_t number, int64_t channel) const {
    return base + (batch_row * count + number) * rows * width + channel;
  }
  __device__ Stretch load(int64_t batch_row, int64_t number, int64_t channel) const {
    const float* const from = at(batch_row, number, channel);
    return {from[0], from[width], from[2 * width], rows > 3 ? from[3 * width] : 0.0f, 0.0f};
  }
  __device__ void store(int64_t batch_row, int64_t number, int64_t channel, Stretch x) const {
    x.fold();
    float* const to = at(batch_row, number, channel);
    to[0] = x.aa, to[width] = x.bb, to[2 * width] = x.pp;
    if (rows > 3) to[3 * width] = x.decay;
  }
};

// One tensor's chunk of tokens for the block's channels in shared memory, twice: one is read while
// the other is fetched.
template <DType kType> class FetchedChunks {
 public:
  __host__ __device__ void take(Pieces& pieces) { base_ = pieces.bytes(2 * kChunkBytes); }

  // This thread's channel at token n of the chunk.
  __device__ float own(int buffer, int n) const {
    return load_element<kType>(base_ + buffer * kChunkBytes,
                               n * kWkv4Threads + static_cast<int>(threadIdx.x));
  }

  // 16 bytes at a time where all rows start at a multiple of 16 bytes, else an element at a time.
  __device__ __forceinline__ void fetch(int buffer, const void* from, const Wkv4Sizes& p,
                                        const Wkv4Place& place, int64_t t, int tokens) const {
    unsigned char* const to = base_ + buffer * kChunkBytes;
    const auto* source = static_cast<const unsigned char*>(from) +
                         ((place.row * p.time + t) * p.width + place.first_channel) * kBytes;
    const int64_t left = p.width - place.first_channel;
    const int channels = left < kWkv4Threads ? static_cast<int>(left) : kWkv4Threads;
    const bool whole = p.width % kPerPiece == 0;
    const int step = whole ? kPerPiece : 1;
    for (int i = static_cast<int>(threadIdx.x) * step; i < tokens * kWkv4Threads;
         i += kWkv4Threads * step) {
      const int row = i / kWkv4Threads, column = i % kWkv4Threads;
      if (column >= channels) continue;
      const auto* element = source + (row * p.width + column) * kBytes;
      if (whole) copy_16_async(to + i * kBytes, element);
      else store_element<kType>(to, i, load_element<kType>(element, 0));
    }
  }

 private:
  static constexpr int kBytes = kType == DType::kFloat ? 4 : 2, kPerPiece = 16 / kBytes;
  static constexpr int kChunkBytes = kBytes * kWkv4Chunk * kWkv4Threads;

  unsigned char* base_;
};

}  // namespace rwkv
