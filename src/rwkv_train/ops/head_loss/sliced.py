"""Head and loss a slice of tokens at a time: the mean with its gradients, or every token's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import Call, backends_of, dispatch, without_autocast
from rwkv_train.ops.precision import compute_dtype

BACKENDS = backends_of("head_loss", "native", "reference")


class SliceOptions(NamedTuple):
    """The results that every slice is to give, and how they are computed."""

    rows: int
    """tokens per slice"""
    matmul_dtype: torch.dtype
    """the dtype of the operands of the matrix products"""
    wants: tuple[bool, bool, bool]
    """whether gradients of x, weight and extra logits are needed"""
    total: float | None
    """what the sum over tokens is divided by; None: the sum of the mask"""
    backend: str
    """who works on the logits, see `ops.backends.dispatch`"""
    call: Call
    """what the backend is chosen by"""
    recomputed: bool = False
    """the gradients are left to a second call, and only their shapes are saved"""

    def run(self, step: str, *arguments: object) -> Any:
        """Returns the result of `reference.run`, by the chosen backend."""
        return dispatch(BACKENDS, self.backend, self.call, (step, *arguments))


class SlicedHeadLoss(torch.autograd.Function):
    """(x [n, C], weight [V, C], ids [n], mask [n] | None, extra [n, V] | None, options) -> loss.

    The gradients are kept without the division by the total, which follows together
    with the incoming gradient: fp16 would lose them below 6e-8 before a loss scale could help.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        extra: Tensor | None,
        options: SliceOptions,
    ) -> Tensor:
        dtype = compute_dtype(options.matmul_dtype)
        counts = None if mask is None else mask.to(dtype)
        now = any(options.wants) and not options.recomputed
        grads = _empty_gradients(x, weight, extra, options)
        grad_extra = grads[2] if now else None
        # Once, not per slice: under autocast this is a copy of the largest matrix.
        operand = weight.to(options.matmul_dtype)
        losses = x.new_empty(x.shape[0], dtype=dtype)
        room = _room_for_logits(x, weight, options)
        for start in range(0, x.shape[0], options.rows):
            part = slice(start, start + options.rows)
            inputs = x[part].to(options.matmul_dtype)
            logits = _logits_into(room, inputs, operand)
            beside = (_rows_of(each, part) for each in (counts, extra, grad_extra))
            kind = options.matmul_dtype if now else None
            gradient = options.run("rows", logits, targets[part], *beside, losses[part], kind)
            if now:
                _add_gradients(grads, part, gradient, inputs, operand)
        loss: Tensor
        loss, total = options.run("mean", losses, counts, options.total)
        ctx.save_for_backward(total, *grads)
        ctx.dtypes = (x.dtype, weight.dtype, None if extra is None else extra.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        total, *grads = ctx.saved_tensors
        with without_autocast(total.device):
            scale = grad_loss / total
            grad_x, grad_weight, grad_extra = (
                None if grad is None else _scaled(grad, scale, dtype)
                for grad, dtype in zip(grads, ctx.dtypes)
            )
        return grad_x, grad_weight, None, None, grad_extra, None


def sliced_token_losses(
    x: Tensor, weight: Tensor, targets: Tensor, extra: Tensor | None, options: SliceOptions
) -> Tensor:
    """Returns every token's own cross entropy, [n], without gradients.

    x: [n, C].  weight: [V, C].  targets: [n].  extra: [n, V] or None.
    """
    operand = weight.to(options.matmul_dtype)
    losses = x.new_empty(x.shape[0], dtype=compute_dtype(options.matmul_dtype))
    room = _room_for_logits(x, weight, options)
    for start in range(0, x.shape[0], options.rows):
        part = slice(start, start + options.rows)
        logits = _logits_into(room, x[part].to(options.matmul_dtype), operand)
        beside = None, _rows_of(extra, part), None
        options.run("rows", logits, targets[part], *beside, losses[part], None)
    return losses


def _rows_of(x: Tensor | None, part: slice) -> Tensor | None:
    return None if x is None else x[part]


def _room_for_logits(x: Tensor, weight: Tensor, options: SliceOptions) -> Tensor:
    """Returns memory for the logits of a slice, [rows, V], which all slices use in turn.

    A GPU's products write fp32 for 16-bit operands: logits of deviation 3, rounded to bf16, would
    make the gradient err twice as much. On a CPU torch has no such product.
    """
    dtype = logits_dtype(x.device.type, options.matmul_dtype)
    return x.new_empty(min(options.rows, x.shape[0]), weight.shape[0], dtype=dtype)


def logits_dtype(device: str, matmul_dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which logits leave their product on a "cpu" or "cuda"."""
    return compute_dtype(matmul_dtype) if device == "cuda" else matmul_dtype


def _logits_into(room: Tensor, inputs: Tensor, operand: Tensor) -> Tensor:
    """Returns inputs @ operand.T in the memory of `room`."""
    logits = room[: inputs.shape[0]]
    if logits.dtype == inputs.dtype:
        return torch.mm(inputs, operand.T, out=logits)
    product: Tensor = torch.ops.aten.mm.dtype_out(inputs, operand.T, logits.dtype, out=logits)
    return product


def _scaled(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns grad * scale, computed in fp32 (fp64) and rounded once to `dtype`."""
    if grad.is_cuda:
        # As [1, 1] and not as a scalar, which would be rounded to the dtype of `grad` first.
        return torch.mul(grad, scale.view(1, 1), out=torch.empty_like(grad, dtype=dtype))
    # On a CPU torch takes scalars as they are, and is slow where it has to cast on the way.
    if grad.dtype in (dtype, scale.dtype):
        return (grad * scale).to(dtype)
    return grad.to(scale.dtype).mul_(scale).to(dtype)


def _empty_gradients(
    x: Tensor, weight: Tensor, extra: Tensor | None, options: SliceOptions
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wants_x, wants_weight, wants_extra = options.wants
    empty: Callable[..., Tensor] = _placeholder if options.recomputed else torch.empty_like
    return (
        empty(x, dtype=options.matmul_dtype) if wants_x else None,
        empty(weight, dtype=_sum_dtype(x, options)) if wants_weight else None,
        empty(extra, dtype=extra.dtype) if wants_extra and extra is not None else None,
    )


def _sum_dtype(x: Tensor, options: SliceOptions) -> torch.dtype:
    """Returns the dtype of the weight's gradient: that of sums, fp32, whatever the weight's.

    A CPU's product is in the dtype of its operands, and of a single one there is no sum.
    """
    is_single = x.device.type == "cpu" and x.shape[0] <= options.rows
    return options.matmul_dtype if is_single else compute_dtype(options.matmul_dtype)


def _placeholder(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns NaN in the shape of `like`, in the memory of one number.

    Checkpointing compares what both calls save by shape and dtype.
    """
    return like.new_full((), torch.nan, dtype=dtype).expand_as(like)


def _add_gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    part: slice,
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
) -> None:
    """Fills in the slice's part of the gradient of x, and adds to that of the weight."""
    grad_x, grad_weight, _ = grads
    if grad_x is not None:
        torch.mm(gradient, weight, out=grad_x[part])
    if grad_weight is None:
        return
    across = gradient.T
    first = part.start == 0
    if grad_weight.dtype == gradient.dtype:
        if first:
            torch.mm(across, inputs, out=grad_weight)
        else:
            grad_weight.addmm_(across, inputs)
    elif gradient.is_cuda:
        # beta = 0 reads nothing, so that the first slice needs no zeros
        torch.ops.aten.addmm.dtype_out(
            grad_weight, across, inputs, grad_weight.dtype, beta=1 - first, out=grad_weight
        )
    elif first:
        grad_weight.copy_(across @ inputs)
    else:
        grad_weight += across @ inputs
