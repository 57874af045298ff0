// Shared memory of the backward pass of RWKV-7 by chunks; names: wkv7_chunk_backward.cuh.
#pragma once

#include "wkv7_chunk_chain.cuh"

namespace rwkv {

struct Wkv7ChunkBackwardShared : Wkv7ChunkGradientOperands {
  using Columns = ChunkTile::Columns;
  using State = ChunkTile::HeadState;

  Columns u;          // U, where A_ab was in fp32
  Columns gz;         // dZ
  State before;       // S0
  State after;        // D
  float* slope;       // [kChunk][kFloatStride]: the derivative of the decay's logarithm by w
  float* state_sums;  // [kWarps][kN]: rowsum(S0 dS0) over the values of a warp
  int bytes;

  __host__ __device__ explicit Wkv7ChunkBackwardShared(unsigned char* base)
      : Wkv7ChunkBackwardShared(Pieces(base)) {}

  // dA_ab, dA_ak, dA_rb, dA_rk take the places of T, A_ak, A_rb, A_rk.
  __device__ Square gab() const { return inverse; }
  __device__ Square gak() const { return ak; }
  __device__ Square grb() const { return rb; }
  __device__ Square grk() const { return rk; }
  // dA~, dR~, dB-, dK- that of S0, in fp32 with rows of kFloatStride.
  __device__ float* results(int number) const {
    return reinterpret_cast<float*>(before.base) + number * kChunk * kFloatStride;
  }
  static_assert(4 * kChunk * kFloatStride * sizeof(float) == State::elements * sizeof(uint16_t));
  // dV that of U.
  __device__ ExactRows gv() const { return ExactRows(u.base); }
  static_assert(ExactRows::elements <= Columns::elements);

 private:
  static constexpr int kColumnsFloats = Columns::elements / 2;
  static_assert(kMixFloats <= kColumnsFloats);

  __host__ __device__ explicit Wkv7ChunkBackwardShared(Pieces pieces)
      : Wkv7ChunkGradientOperands(pieces, kColumnsFloats),
        u(reinterpret_cast<uint16_t*>(mix)), gz(pieces), before(pieces), after(pieces),
        slope(pieces.floats(kChunk * kFloatStride)),
        state_sums(pieces.floats(ChunkTile::kWarps * kN)), bytes(pieces.used()) {}
};

}  // namespace rwkv
