"""The weight of RWKV-7's bonus: how much of its own value a token adds to a head's output.

    s = sum over the channels of a head of r k weight

r and k are handed on for the operator that reads them too, so that what it gives back is added to
their gradients inside: no pass of its own and no rounding of the two sums' parts. Computed in fp32
(fp64), each result rounded once.

| backend     | serves                                            | memory kept for backward   |
|-------------|---------------------------------------------------|----------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | the arguments              |
| `reference` | any device, torch operators one by one            | about three fp32 sequences |

CUDA kernels serve heads of 32, 64, 128 and 256 channels.

Source: RWKV-7 paper (Goose), the bonus of the time mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("bonus", "native", "reference")


def bonus(
    r: Tensor, k: Tensor, weight: Tensor, *, backend: str = AUTO
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns s, [B, T, H] in fp32 (fp64), and r and k for the next operator to read.

    r, k: [B, T, H, N], one of fp32, bf16, fp16, fp64.
    weight: [H, N], any float dtype; r_k of the checkpoints.

    Gradients flow to every argument. Raises BackendError when an argument does not fit or the
    backend asked for cannot serve the call.
    """
    like = check_sequences("bonus", {"r": r, "k": k}, "[B, T, H, N]")
    weight = prepare("bonus", "weight", weight, tuple(like.shape[2:]), like)
    tensors = (r, k, weight)
    call = describe_call("bonus", like, tensors, has_state=False, has_reset=False)
    s, r, k = dispatch(BACKENDS, backend, call, tensors)
    return s, r, k
