// Which tile serves a call: by head size, and by whether there are enough heads to fill the card.
#pragma once

#include "../params/head_params.h"
#include "../params/launch_options.h"
#include "state_tile.cuh"

namespace rwkv {

// run.template operator()<N>() for the head size of the call, or `otherwise` for a head size or an
// element type without a kernel.
template <typename Result, typename Run>
Result with_size(const HeadSizes& p, Run run, Result otherwise) {
  const bool has_gw = p.gw_dtype == DType::kFloat || p.gw_dtype == p.dtype;
  if (p.dtype == DType::kDouble || p.w_dtype != DType::kFloat || !has_gw) return otherwise;
  switch (p.size) {
    case 32: return run.template operator()<32>();
    case 64: return run.template operator()<64>();
    case 128: return run.template operator()<128>();
    case 256: return run.template operator()<256>();
    default: return otherwise;
  }
}

// Whether the wide tile serves rather than the full one, which needs `shared_bytes`.
template <class Full> bool prefers_wide(const HeadSizes& p, int64_t split, int shared_bytes) {
  if (split == kSplitWide || shared_bytes > most_shared_bytes()) return true;
  return split == kSplitAuto && p.batch * p.heads * Full::kSlices < multiprocessors();
}

// run.template operator()<TileType>() likewise, for the tile that `split` asks for, if a block can
// have the shared memory. Block<TileType>: whose Shared says how much that is.
template <int kMostWarps, template <class> class Block, typename Result, typename Run>
Result with_tile(const HeadSizes& p, int64_t split, Run run, Result otherwise) {
  const auto run_tile = [&]<class TileType>() -> Result {
    const bool fits =
        typename Block<TileType>::Shared(nullptr, p.dtype).bytes <= most_shared_bytes();
    return fits ? run.template operator()<TileType>() : otherwise;
  };
  const auto run_size = [&]<int kN>() -> Result {
    using Full = FullTile<kN, kMostWarps>;
    if constexpr (kHasWide<kN>) {
      if (prefers_wide<Full>(p, split, typename Block<Full>::Shared(nullptr, p.dtype).bytes)) {
        return run_tile.template operator()<WideTile<kN>>();
      }
    }
    return run_tile.template operator()<Full>();
  };
  return with_size(p, run_size, otherwise);
}

}  // namespace rwkv
