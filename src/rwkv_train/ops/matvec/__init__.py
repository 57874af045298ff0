"""Products of a few vectors with one matrix, as decoding makes them; without gradients.

    y[..., n] = scale[n] Σ_k x[..., k] weight[n, k]

The matrix is stored in fp32, bf16, fp16, or in int8 with a scale per row; the sums are in fp32. A
vector's result does not depend on the others of its call, bit for bit.

| backend     | serves                                                             |
|-------------|--------------------------------------------------------------------|
| `native`    | C++ on the CPU: up to 8 vectors, not fp64; needs a compiler        |
| `reference` | any device and number of vectors, torch operators one by one       |

Such a product is as fast as the matrix comes from memory. torch's own for a matrix in bf16 is
slower than that, and it has none for int8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import describe_call
from rwkv_train.ops.backends.dispatch import AUTO, Call, backends_of, choose, dispatch

BACKENDS = backends_of("matvec", "native", "reference")
# Vectors of one call of the native kernel, whose sums then all have a register.
MOST_VECTORS = 8


def matvec(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, *, backend: str = AUTO
) -> Tensor:
    """Returns x weightᵀ, the rows times `scale`: [..., N] in the dtype of x.

    x: [..., K].  weight: [N, K], any float dtype; int8 with a scale.  scale: [N] in fp32, or None.

    Raises BackendError when an argument does not fit, or a gradient would be lost.
    """
    _check(x, weight, scale)
    y: Tensor = dispatch(BACKENDS, backend, _described(x), (x, weight, scale))
    return y


def _check(x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    if not x.dim() or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise BackendError(
            f"matvec: x has shape {list(x.shape)} and weight {list(weight.shape)}, expected "
            "[..., K] and [N, K]"
        )
    if not x.is_floating_point():
        raise BackendError(f"matvec: x is {x.dtype}, expected a float tensor")
    if weight.is_floating_point() != (scale is None) or (
        scale is not None and weight.dtype != torch.int8
    ):
        raise BackendError(
            f"matvec: weight is {weight.dtype} with{'out' * (scale is None)} a scale, expected "
            "floats without or int8 with one"
        )
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != weight.shape[:1]):
        raise BackendError(
            f"matvec: scale is {scale.dtype} {list(scale.shape)}, expected torch.float32 "
            f"{list(weight.shape[:1])}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise BackendError("matvec: it has no gradients; call it under torch.no_grad()")


def is_served_natively(x: Tensor) -> bool:
    """Tells whether the native kernel serves products of such x; if not, the log says why once."""
    return BACKENDS[choose(BACKENDS, AUTO, _described(x))].name == "native"


def _described(x: Tensor) -> Call:
    rows = x.reshape(1, -1, x.shape[-1])
    return describe_call("matvec", rows, (), has_state=False, has_reset=False)
