"""RWKV-7's value residual: a layer's value mixed with that of the first layer.

    v = value + (first - value) sigmoid(logits + base)

The first layer's value is handed on, so that its gradient is summed over the layers inside the
operator: one rounding per layer and no pass of its own. So are the two gradients of v, which is
given out once for each of its readers, wkv7 and the head norm. Computed in fp32 (fp64), each result
rounded once.

| backend     | serves                                            | memory kept for backward   |
|-------------|---------------------------------------------------|----------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | the arguments              |
| `reference` | any device, torch operators one by one            | about four fp32 sequences  |

Source: RWKV-7 paper (Goose), value residual learning.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("value_residual", "native", "reference")


def value_residual(
    value: Tensor, first: Tensor, logits: Tensor, base: Tensor, *, backend: str = AUTO
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns v twice, [B, T, D] in the dtype of `value`, and `first` for the next layer to read.

    value, first, logits: [B, T, D], one of fp32, bf16, fp16, fp64; logits without the base.
    base: [D], any float dtype; v0 of the checkpoints.

    Gradients flow to every argument. Raises BackendError when an argument does not fit or the
    backend asked for cannot serve the call.
    """
    sequences = {"value": value, "first": first, "logits": logits}
    like = check_sequences("value_residual", sequences, "[B, T, D]")
    base = prepare("value_residual", "base", base, (like.shape[2],), like)
    tensors = (value, first, logits, base)
    call = describe_call("value_residual", like, tensors, has_state=False, has_reset=False)
    v, again, first = dispatch(BACKENDS, backend, call, tensors)
    return v, again, first
