"""The loss of a slice of logits by the project's own kernels: C++ and CUDA (`cuda/head_loss`).

The ops change the logits they are given and have no derivative: `sliced.SlicedHeadLoss` is the
function that has one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native.custom_ops import PlainOps, refusal


def _rows_fake(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    extra: Tensor | None,
    extra_gradient: Tensor | None,
    losses: Tensor,
    gradient_dtype: torch.dtype,
    wants_gradient: bool,
) -> None:
    """Returns nothing: the results take the place of logits, extra_gradient and losses."""


def _mean_fake(losses: Tensor, mask: Tensor | None, total: float | None) -> tuple[Tensor, Tensor]:
    return losses.new_empty(()), losses.new_empty(())


_OPS = PlainOps({"head_loss_rows_": _rows_fake, "head_loss_mean": _mean_fake})


def refuses(call: Call) -> Refusal | None:
    """Returns what stands in the way; None once the kernels are built and loaded."""
    return refusal(call, _OPS)


def _rows(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    extra: Tensor | None,
    extra_gradient: Tensor | None,
    losses: Tensor,
    gradient_dtype: torch.dtype | None,
) -> Tensor:
    """Returns the gradient of a slice and fills in its losses; as in `reference`."""
    torch.ops.rwkv.head_loss_rows_(
        logits,
        targets,
        mask,
        extra,
        extra_gradient,
        losses,
        gradient_dtype or logits.dtype,
        gradient_dtype is not None,
    )
    if gradient_dtype in (None, logits.dtype):
        return logits
    # Each row's gradient begins where its logits did.
    return logits.view(gradient_dtype)[:, : logits.shape[1]]


def _mean(losses: Tensor, mask: Tensor | None, total: float | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and what its sum was divided by; as in `reference`."""
    results: tuple[Tensor, Tensor] = torch.ops.rwkv.head_loss_mean(losses, mask, total)
    return results


_STEPS: dict[str, Callable[..., object]] = {"rows": _rows, "mean": _mean}


def run(step: str, *arguments: object) -> object:
    """Returns the result of a step: "rows" for every slice, and then "mean"."""
    return _STEPS[step](*arguments)
