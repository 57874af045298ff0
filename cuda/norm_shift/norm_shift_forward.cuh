// Forward pass of norm_shift on a GPU; formulas in norm_shift_cpu.cpp.
#pragma once

#include "../common/gpu/lane_sigmoid.cuh"
#include "norm_shift_place.cuh"

namespace rwkv {

template <int kChannels> struct NormForwardThread {
  using Row = Channels<kChannels>;

  const NormShiftForward& p;
  NormPlace<kChannels> place;
  const Row weight, bias;

  __device__ NormForwardThread(const NormShiftForward& p, float* shared)
      : p(p), place(p, shared), weight(place.load_vector(p.weight)),
        bias(place.load_vector(p.bias)) {}

  // One run of tokens; all threads of the block come here together.
  __device__ void run(int64_t begin) {
    const int64_t left = p.time - begin;
    const int tokens = static_cast<int>(left < kNormRunTokens ? left : kNormRunTokens);
    Row before{};
    if (p.mixes != nullptr) {
      const bool is_inside = begin > 0 && tokens > 0;
      before = normal(begin - 1, is_inside, false);
      if (!is_inside) before = place.load(p.last, last_index(), DType::kFloat);
    }
#pragma unroll 1
    for (int n = 0; n < kNormRunTokens; ++n) {
      const bool is_there = n < tokens;
      const int64_t token = begin + n;
      const Row now = normal(token, is_there, true);
      if (!is_there) continue;
      if (p.reset != nullptr && p.reset[place.row * p.time + token]) before = {};
      write(token, before, now);
      if (p.h_last != nullptr && token + 1 == p.time) {
        place.store(p.h_last, last_index(), DType::kFloat, now);
      }
      before = now;
    }
  }

 private:
  __device__ int64_t last_index() const { return place.row * p.width + place.channel; }

  // h of a token; x' and statistics of a token that is the run's own are written.
  __device__ Row normal(int64_t token, bool is_there, bool is_own) {
    Row x = is_there ? stream(token, is_own) : Row{};
    const float2 s = statistics(token, is_there, is_own, x);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      x.at[c] = (x.at[c] - s.x) * s.y * weight.at[c] + bias.at[c];
    }
    return x;
  }

  __device__ Row stream(int64_t token, bool is_own) const {
    const int64_t at = place.at(token);
    Row x = place.load(p.x, at, p.dtype);
    if (p.out == nullptr) return x;
    const Row out = place.load(p.out, at, p.y_dtype), gate = place.load(p.gate, at, p.y_dtype);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      x.at[c] += p.gate == nullptr ? out.at[c] : LaneSigmoid(gate.at[c]).of_z * out.at[c];
      // The norm reads what the backward pass will: the rounded sum.
      x.at[c] = stored(x.at[c]);
    }
    if (is_own) place.store(p.stream, at, p.dtype, x);
    return x;
  }

  __device__ float stored(float x) const {
    uint16_t bits;
    if (p.dtype == DType::kFloat) return x;
    if (p.dtype == DType::kHalf) {
      store_element<DType::kHalf>(&bits, 0, x);
      return load_element<DType::kHalf>(&bits, 0);
    }
    store_element<DType::kBFloat16>(&bits, 0, x);
    return load_element<DType::kBFloat16>(&bits, 0);
  }

  // Mean and inverse deviation.
  __device__ float2 statistics(int64_t token, bool is_there, bool is_own, const Row& x) {
    const int64_t place_of_token = 2 * (place.row * p.time + token);
    if (p.known != nullptr) {
      const float* const known = static_cast<const float*>(p.known) + place_of_token;
      return is_there ? make_float2(known[0], known[1]) : make_float2(0.0f, 0.0f);
    }
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum += x.at[c];
    const float channels = static_cast<float>(p.width);
    const float mean = place.sum_over_row(sum, 0.0f).x / channels;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) squares += (x.at[c] - mean) * (x.at[c] - mean);
    // Rows are whole octets, so that a thread has all of its channels or none.
    squares = place.sum_over_row(place.has_channels() ? squares : 0.0f, 0.0f).x;
    const float inverse = 1.0f / sqrtf(squares / channels + static_cast<float>(p.eps));
    if (is_there && is_own && place.channel == 0) {
      float* const to = static_cast<float*>(p.statistics) + place_of_token;
      to[0] = mean, to[1] = inverse;
    }
    return make_float2(mean, inverse);
  }

  __device__ void write(int64_t token, const Row& before, const Row& now) const {
    const int64_t at = place.at(token);
    if (p.mixes == nullptr) return place.store(p.y[0], at, p.y_dtype, now);
    const int64_t whole = p.batch * p.time * p.width;
#pragma unroll 1
    for (int i = 0; i < p.count; ++i) {
      Row y = place.load_vector(p.mixes, i);
      const Row moves = p.moves == nullptr ? Row{} : place.load(p.moves, i * whole + at, p.y_dtype);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        y.at[c] = now.at[c] + (before.at[c] - now.at[c]) * (y.at[c] + moves.at[c]);
      }
      place.store(p.y[i], at, p.y_dtype, y);
    }
  }
};

// What it computes: x', statistics, the last h and all results.
// What a thread owns: 8 channels (1 where the width is no multiple of 8) of 16 tokens.
// What it gave up: every 16th token is normalised twice, rows wait for two barriers a token, and
// loads are not asked for ahead.
template <int kChannels>
__global__ void __launch_bounds__(kNormThreads)
    norm_shift_forward_kernel(const __grid_constant__ NormShiftForward p) {
  DYNAMIC_SHARED(shared);
  NormForwardThread<kChannels> thread(p, reinterpret_cast<float*>(shared));
  for (int first = 0; first < kNormRuns; first += thread.place.runs) {
    thread.run(thread.place.block_begin + (first + thread.place.run) * kNormRunTokens);
  }
}

}  // namespace rwkv
