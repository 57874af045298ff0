"""AdamW over all parameters of a model, in two passes over memory: norm of the gradients, update.

With gradients g whose joint L2 norm is |g|, a limit of it, and the step t of a parameter:

    g = g min(1, limit / (|g| + 1e-6))
    p = p (1 - rate decay)
    m = m + (1 - beta1) (g - m)        v = beta2 v + (1 - beta2) g^2
    p = p - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)        weight = round(p)

One pass is not enough: every element needs the norm of all, and a step that is left out changes
nothing. The norm stays on its device, and is infinity or NaN where a gradient is.

| backend     | serves                                            |
|-------------|---------------------------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler |
| `reference` | any device, torch operators one by one            |

Sums of the native backend have one order, whatever the number of threads.

Source: Loshchilov and Hutter 2019, algorithm 2, with torch.optim.AdamW's order of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends.dispatch import AUTO, Call, backends_of, choose, dispatch
from rwkv_train.ops.precision import compute_dtype

BACKENDS = backends_of("adamw", "native", "reference")


class AdamwTensors(NamedTuple):
    """The tensors of an update, one of each kind for every parameter, in the same order.

    parameters, exp_avgs, exp_avg_sqs: fp32 (fp64), contiguous, changed in place; gradients: the
    same shapes, any float dtype; steps: fp32 counters on the CPU, counted up; weights: copies of
    the parameters in another dtype, which are written too; empty: there are none.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    steps: Sequence[Tensor]
    weights: Sequence[Tensor] = ()


class AdamwOptions(NamedTuple):
    """Numbers of an update: rates and decays for every parameter, the others for all.

    norm: of all gradients, as `gradient_norm` returns it: they are clipped to `limit`. None: they
    are taken as they are.
    """

    rates: Sequence[float]
    decays: Sequence[float]
    beta1: float
    beta2: float
    eps: float
    norm: Tensor | None = None
    limit: float = 0.0


def gradient_norm(gradients: Sequence[Tensor], *, backend: str = AUTO) -> Tensor:
    """Returns the L2 norm of all gradients together, fp64, of no axis, on their device.

    gradients: at least one, of any shape and float dtype, on one device. Squares are summed in
    fp32 (fp64) within 1024 elements and in fp64 above. Raises BackendError when there are none.
    """
    if not gradients:
        raise BackendError("gradient_norm: there are no gradients; expected at least one")
    norm: Tensor = dispatch(BACKENDS, backend, _call(gradients[0]), (gradients,))
    return norm


def adamw_update(tensors: AdamwTensors, options: AdamwOptions, *, backend: str = AUTO) -> None:
    """Makes one step of AdamW in place. Raises BackendError when the lists differ in length."""
    counts = {len(of_kind) for of_kind in tensors[:-1]} | {len(options.rates), len(options.decays)}
    counts |= {len(tensors.weights)} if tensors.weights else set()
    if len(counts) > 1:
        raise BackendError(
            f"adamw_update: lists of {', '.join(map(str, sorted(counts)))} tensors; expected one "
            "of each kind for every parameter"
        )
    if tensors.parameters:
        call = _call(tensors.parameters[0])
        dispatch(BACKENDS, backend, call, (tensors.gradients, tensors, options))


def has_kernel(device: torch.device) -> bool:
    """Tells whether the project's own kernels serve `device`; builds them if need be."""
    call = Call("adamw", device, torch.float32, *_SIZES)
    return BACKENDS[choose(BACKENDS, AUTO, call)].name == "native"


# No axis of theirs means anything here, and there is no gradient of a step.
_SIZES = (1, 1, 1, 1, False, False, False)


def _call(like: Tensor) -> Call:
    return Call("adamw", like.device, compute_dtype(like.dtype), *_SIZES)
