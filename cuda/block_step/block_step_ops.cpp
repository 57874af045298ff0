// Schema of the steps of blocks (the contract with src/rwkv_train/ops/block_step/native.py): one
// token of each of a few sequences through a block of RWKV-4, 5, 6 or 7, on the CPU.
//
// x: [B, 1, C], with what the block before adds to it.  carry: RWKV-7's first value, or None.
// state: tensors of a layer's state.  vectors, matrices: as the formula of the version has them, see
// its header.  scales: of matrices in int8; of others a tensor without elements.  eps: see Eps.
// Returns x behind the block in its dtype, the tensors of the state, and RWKV-7's carry.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "rwkv4_step.h"
#include "rwkv5_6_step.h"
#include "rwkv7_step.h"

namespace rwkv::step {
namespace {

// formula(block, state, carry): the new state.
template <typename Formula>
std::vector<Tensor> run_block(const Tensor& x, const Parameters& parameters, Formula formula) {
  TORCH_CHECK(x.dim() == 3 && x.size(1) == 1 && x.size(0) <= kMostMatvecRows,
              "x must be [B, 1, C] with B up to ", kMostMatvecRows, ", got ", x.sizes());
  // What follows has no derivative, and need not ask for it at every operator.
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  BoundBlock block(parameters, x.contiguous());
  std::vector<Tensor> found = formula(block);
  Tensor y = at::empty(x.sizes(), x.options());
  store_row<float>(y.mutable_data_ptr(), dtype_of(x, "x"), 0, x.numel(), block.stream);
  found.insert(found.begin(), y);
  return found;
}

// The blocks of versions that hand nothing on but the stream.
using Block = std::vector<Tensor>(BoundBlock&, at::TensorList, Eps);

template <Block* kBlock>
std::vector<Tensor> step(const Tensor& x, const std::optional<Tensor>& /* carry */,
                         at::TensorList state, at::TensorList vectors, at::TensorList matrices,
                         at::TensorList scales, Eps eps) {
  return run_block(x, {vectors, matrices, scales},
                   [&](BoundBlock& block) { return kBlock(block, state, eps); });
}

std::vector<Tensor> step_with_carry(const Tensor& x, const std::optional<Tensor>& carry,
                                    at::TensorList state, at::TensorList vectors,
                                    at::TensorList matrices, at::TensorList scales, Eps eps) {
  Tensor first = carry.value_or(Tensor());
  std::vector<Tensor> found = run_block(x, {vectors, matrices, scales}, [&](BoundBlock& block) {
    return rwkv7_block(block, state, first, eps);
  });
  found.push_back(first);
  return found;
}

}  // namespace
}  // namespace rwkv::step

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  for (const char* name : {"rwkv4_block", "rwkv5_block", "rwkv6_block", "rwkv7_block"}) {
    m.def((std::string(name) +
          "(Tensor x, Tensor? carry, Tensor[] state, Tensor[] vectors, Tensor[] matrices, "
          "Tensor[] scales, float[] eps) -> Tensor[]")
              .c_str());
  }
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("rwkv4_block", &rwkv::step::step<&rwkv::step::rwkv4_block>);
  m.impl("rwkv5_block", &rwkv::step::step<&rwkv::step::rwkv5_block>);
  m.impl("rwkv6_block", &rwkv::step::step<&rwkv::step::rwkv6_block>);
  m.impl("rwkv7_block", &rwkv::step::step_with_carry);
}
