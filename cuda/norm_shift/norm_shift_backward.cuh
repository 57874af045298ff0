// Backward pass of norm_shift on a GPU; formulas in norm_shift_cpu.cpp.
#pragma once

#include "../common/gpu/lane_sigmoid.cuh"
#include "norm_shift_place.cuh"

namespace rwkv {

// Less than the forward pass: each thread has a share of the memory for sums.
constexpr int kNormBackwardThreads = 256;

// A thread's running sums over the tokens of its run, in shared memory: for eight mixes they would
// be more registers than a thread has.
template <int kChannels> class NormSums {
 public:
  using Row = Channels<kChannels>;

  __device__ NormSums(float* base, int threads) : base_(base), threads_(threads) {}

  static __host__ __device__ int bytes(int64_t sums, int threads) {
    return static_cast<int>(sums) * threads * kChannels * static_cast<int>(sizeof(float));
  }

  __device__ void clear(int sums) const {
    for (int i = 0; i < sums; ++i) store(i, Row{});
  }
  __device__ __forceinline__ void add(int i, const Row& x) const {
    Row total = load(i);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) total.at[c] += x.at[c];
    store(i, total);
  }
  // Neighbouring threads' pieces of 16 bytes are neighbours.
  __device__ __forceinline__ Row load(int i) const {
    if constexpr (kChannels == kVec8) {
      const float4 a = piece(i, 0), b = piece(i, 1);
      return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    } else {
      return {{base_[i * threads_ + static_cast<int>(threadIdx.x)]}};
    }
  }

 private:
  float* const base_;
  const int threads_;

  __device__ __forceinline__ float4& piece(int i, int half) const {
    return reinterpret_cast<float4*>(base_)[(2 * i + half) * threads_ +
                                            static_cast<int>(threadIdx.x)];
  }
  __device__ __forceinline__ void store(int i, const Row& x) const {
    if constexpr (kChannels == kVec8) {
      piece(i, 0) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
      piece(i, 1) = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
    } else {
      base_[i * threads_ + static_cast<int>(threadIdx.x)] = x.at[0];
    }
  }
};

template <int kChannels> struct NormBackwardThread {
  using Row = Channels<kChannels>;

  const NormShiftBackward& p;
  NormPlace<kChannels> place;
  const NormSums<kChannels> sums;  // of the mixes, of weight and of bias
  const int mixed;                 // how many mixes have a sum
  const Row weight, bias;
  Row next;  // q of the token behind

  __device__ NormBackwardThread(const NormShiftBackward& p, float* shared)
      : p(p), place(p, shared, kNormBackwardThreads),
        sums(shared + kNormSharedBytes / sizeof(float), place.row_threads * place.runs),
        mixed(p.mixes == nullptr ? 0 : static_cast<int>(p.count)),
        weight(place.load_vector(p.weight)), bias(place.load_vector(p.bias)) {}

  // The run from token `begin` on, last token first; all threads of the block come here together.
  __device__ void run(int64_t begin) {
    const int64_t left = p.time - begin;
    const int tokens = static_cast<int>(left < kNormRunTokens ? left : kNormRunTokens);
    sums.clear(static_cast<int>(norm_shift_sums(p)));
    next = {};
    const int64_t end = begin + tokens;
    if (tokens > 0 && end < p.time && !starts_document(end)) next = passed_back(end);
    Row now = tokens > 0 ? normalised(end - 1) : Row{};
#pragma unroll 1
    for (int n = kNormRunTokens - 1; n >= 0; --n) {
      const bool is_there = n < tokens;
      const int64_t token = begin + n;
      const Row earlier = is_there && token > 0 ? normalised(token - 1) : Row{};
      Row u{};
      if (is_there) u = add(token, now, earlier);
      if (p.gx != nullptr) write(token, is_there, now, u);
      if (is_there) now = earlier;
    }
    if (tokens > 0 && begin == 0 && p.glast != nullptr) {
      place.store(p.glast, last_index(), DType::kFloat, next);
    }
  }

  // Adds the run's sums to those of its block of tokens, or begins them.
  __device__ void join(bool is_first) const {
    if (!place.has_channels()) return;
    const int rows = static_cast<int>(norm_shift_sums(p));
    float* to = static_cast<float*>(p.sums) + int64_t{blockIdx.x} * rows * p.width + place.channel;
    for (int i = 0; i < rows; ++i, to += p.width) {
      Row total = is_first ? Row{} : load_row<Row>(to, 0, DType::kFloat);
      add_row(total, sums.load(i));
      store_row(to, 0, DType::kFloat, total);
    }
  }

 private:
  __device__ int64_t last_index() const { return place.row * p.width + place.channel; }
  __device__ bool starts_document(int64_t token) const {
    return p.reset != nullptr && p.reset[place.row * p.time + token];
  }
  __device__ float2 statistics(int64_t token) const {
    const float* const s =
        static_cast<const float*>(p.statistics) + 2 * (place.row * p.time + token);
    return make_float2(s[0], s[1]);
  }

  __device__ Row normalised(int64_t token) const {
    Row x = place.load(p.stream, place.at(token), p.dtype);
    const float2 s = statistics(token);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) x.at[c] = (x.at[c] - s.x) * s.y;
    return x;
  }

  // mixes_i + moves_i of a token
  __device__ Row share(int i, int64_t at) const {
    Row share = place.load_vector(p.mixes, i);
    if (p.moves == nullptr) return share;
    const Row moves = place.load(p.moves, moved(i, at), p.y_dtype);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) share.at[c] += moves.at[c];
    return share;
  }
  __device__ int64_t moved(int i, int64_t at) const {
    return i * p.batch * p.time * p.width + at;
  }

  __device__ Row passed_back(int64_t token) const {
    Row q{};
    if (p.mixes == nullptr) return q;
    for (int i = 0; i < p.count; ++i) {
      const Row g = place.load(p.gy[i], place.at(token), p.y_dtype);
      const Row m = share(i, place.at(token));
#pragma unroll
      for (int c = 0; c < kChannels; ++c) q.at[c] += g.at[c] * m.at[c];
    }
    return q;
  }

  // h of the token before less h, as the token is mixed with it
  __device__ Row difference(int64_t token, const Row& now, const Row& earlier) const {
    Row delta{};
    const bool starts = starts_document(token);
    if (!starts && token == 0) delta = place.load(p.last, last_index(), DType::kFloat);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (!starts && token > 0) delta.at[c] = earlier.at[c] * weight.at[c] + bias.at[c];
      delta.at[c] -= now.at[c] * weight.at[c] + bias.at[c];
    }
    return delta;
  }

  // Takes the gradients of a token's results through the shift; returns u.
  __device__ Row add(int64_t token, const Row& now, const Row& earlier) {
    const int64_t at = place.at(token);
    Row gh = next, q{};
    if (p.mixes == nullptr) {
      add_row(gh, place.load(p.gy[0], at, p.y_dtype));
    } else {
      const Row delta = difference(token, now, earlier);
#pragma unroll 1
      for (int i = 0; i < mixed; ++i) add_result(i, at, delta, gh, q);
      next = starts_document(token) ? Row{} : q;
    }
    if (p.gh_last != nullptr && token + 1 == p.time) {
      add_row(gh, place.load(p.gh_last, last_index(), DType::kFloat));
    }
    add_row(gh, place.load(p.gnormal, at, p.y_dtype));
    if (p.gx == nullptr) {
      place.store(p.gnormal_out, at, p.y_dtype, gh);
      return gh;
    }
    Row scaled;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) scaled.at[c] = gh.at[c] * now.at[c];
    sums.add(mixed, scaled);
    sums.add(mixed + 1, gh);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) gh.at[c] *= weight.at[c];
    return gh;
  }

  __device__ __forceinline__ void add_result(int i, int64_t at, const Row& delta, Row& gh, Row& q) {
    const Row g = place.load(p.gy[i], at, p.y_dtype), m = share(i, at);
    Row product;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float through = g.at[c] * m.at[c];
      q.at[c] += through;
      gh.at[c] += g.at[c] - through;
      product.at[c] = g.at[c] * delta.at[c];
    }
    sums.add(i, product);
    if (p.gmoves != nullptr) place.store(p.gmoves, moved(i, at), p.y_dtype, product);
  }

  __device__ static void add_row(Row& to, const Row& x) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) to.at[c] += x.at[c];
  }

  // Takes u through the norm; all threads of the block take part in its sums.
  __device__ void write(int64_t token, bool is_there, const Row& now, const Row& u) {
    float of_u = 0.0f, of_product = 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      of_u += u.at[c];
      of_product += u.at[c] * now.at[c];
    }
    float2 mean = place.sum_over_row(of_u, of_product);
    if (!is_there) return;
    mean.x /= static_cast<float>(p.width), mean.y /= static_cast<float>(p.width);
    const int64_t at = place.at(token);
    const float inverse = statistics(token).y;
    Row gx = place.load(p.gstream, at, p.dtype);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      gx.at[c] += (u.at[c] - mean.x - now.at[c] * mean.y) * inverse;
    }
    place.store(p.gx, at, p.dtype, gx);
    if (p.gate != nullptr) {
      Row gate = place.load(p.gate, at, p.y_dtype), out = place.load(p.out, at, p.y_dtype);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const LaneSigmoid s(gate.at[c]);
        gate.at[c] = gx.at[c] * out.at[c] * s.slope();
        out.at[c] = gx.at[c] * s.of_z;
      }
      place.store(p.ggate, at, p.y_dtype, gate);
      place.store(p.gout, at, p.y_dtype, out);
    } else if (p.gout != nullptr) {
      place.store(p.gout, at, p.y_dtype, gx);
    }
  }
};

// What it computes: all gradients of sequences, glast and, per block of tokens, the sums for the
// parameters.
// What a thread owns: 8 channels (1 where the width is no multiple of 8) of 16 tokens.
// What it gave up: x' and gy are read twice at every 16th token, and loads are not asked for ahead;
// sums over tokens go through shared memory: by arithmetic a fifth of the time that an H100's loads
// take meanwhile.
template <int kChannels>
__global__ void __launch_bounds__(kNormThreads)
    norm_shift_backward_kernel(const __grid_constant__ NormShiftBackward p) {
  DYNAMIC_SHARED(shared);
  NormBackwardThread<kChannels> thread(p, reinterpret_cast<float*>(shared));
  const int runs = thread.place.runs;
  for (int first = 0; first < kNormRuns; first += runs) {
    thread.run(thread.place.block_begin + (first + thread.place.run) * kNormRunTokens);
    // One run after the other, so that the order of the sum is theirs.
    for (int run = 0; run < runs; ++run) {
      if (run == thread.place.run) thread.join(first + run == 0);
      __syncthreads();
    }
  }
}

}  // namespace rwkv
