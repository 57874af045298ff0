"""Head and loss a slice of tokens at a time: the mean with its gradients, or every token's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import without_autocast
from rwkv_train.ops.head_loss.reference import L2WRAP
from rwkv_train.ops.precision import compute_dtype


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
    recomputed: bool = False
    """the gradients are left to a second call, and only their shapes are saved"""


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
        if counts is None or options.total is not None:
            size = float(x.shape[0]) if options.total is None else options.total
            # filled, not copied: a copy to a GPU waits for it
            total = torch.full((), size, dtype=dtype, device=x.device)
        else:
            # With nothing to learn from, the loss is 0 and not 0 / 0.
            total = counts.sum()
            total = torch.where(total > 0, total, 1)
        now = any(options.wants) and not options.recomputed
        grads = _empty_gradients(x, weight, extra, options)
        # Once, not per slice: under autocast this is a copy of the largest matrix.
        operand = weight.to(options.matmul_dtype)
        loss = total.new_zeros(())
        for start in range(0, x.shape[0], options.rows):
            part = slice(start, start + options.rows)
            inputs = x[part].to(options.matmul_dtype)
            logits = (inputs @ operand.T).to(dtype)  # [rows, V]
            if extra is not None:
                logits += extra[part]
            count = None if counts is None else counts[part]
            loss += _to_gradient(logits, targets[part], count, now)
            if now:
                _add_gradients(grads, part, logits, inputs, operand, options)
        ctx.save_for_backward(total, *grads)
        ctx.dtypes = (x.dtype, weight.dtype, None if extra is None else extra.dtype)
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        total, *grads = ctx.saved_tensors
        with without_autocast(total.device):
            scale = grad_loss / total
            grad_x, grad_weight, grad_extra = (
                None if grad is None else (grad * scale).to(dtype)
                for grad, dtype in zip(grads, ctx.dtypes)
            )
        return grad_x, grad_weight, None, None, grad_extra, None


def sliced_token_losses(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    extra: Tensor | None,
    rows: int,
    matmul_dtype: torch.dtype,
) -> Tensor:
    """Returns every token's own cross entropy, [n], without gradients.

    x: [n, C].  weight: [V, C].  targets: [n].  extra: [n, V] or None.
    rows: tokens per slice; at most one slice of logits exists at a time.
    """
    dtype = compute_dtype(matmul_dtype)
    operand = weight.to(matmul_dtype)
    losses = x.new_empty(x.shape[0], dtype=dtype)
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        logits = (x[part].to(matmul_dtype) @ operand.T).to(dtype)  # [rows, V]
        if extra is not None:
            logits += extra[part]
        largest = logits.amax(1)
        at_target = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
        # in place: logsumexp would take a second slice of memory
        total = logits.sub_(largest.unsqueeze(1)).exp_().sum(1)
        losses[part] = total.log() + largest - at_target
    return losses


def _empty_gradients(
    x: Tensor, weight: Tensor, extra: Tensor | None, options: SliceOptions
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wants_x, wants_weight, wants_extra = options.wants
    dtype = compute_dtype(options.matmul_dtype)
    empty: Callable[..., Tensor] = torch.empty_like
    zeros: Callable[..., Tensor] = torch.zeros_like
    if options.recomputed:
        empty = zeros = _placeholder
    return (
        empty(x, dtype=options.matmul_dtype) if wants_x else None,
        # fp32 whatever the weight's dtype, since the slices are summed in it
        zeros(weight, dtype=dtype) if wants_weight else None,
        empty(extra, dtype=extra.dtype) if wants_extra and extra is not None else None,
    )


def _placeholder(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns NaN in the shape of `like`, in the memory of one number.

    Checkpointing compares what both calls save by shape and dtype.
    """
    return like.new_full((), torch.nan, dtype=dtype).expand_as(like)


def _to_gradient(
    logits: Tensor, targets: Tensor, counts: Tensor | None, wants_gradient: bool
) -> Tensor:
    """Returns the summed loss of a slice; turns `logits` in place into that sum's gradient.

    counts: [rows], the mask, or None for ones.
    """
    targets = targets.unsqueeze(1)
    largest, position = logits.max(1, keepdim=True)
    at_target = logits.gather(1, targets)
    # In place throughout: a second slice of logits would double the peak of memory.
    logits -= largest
    logits.exp_()
    total = logits.sum(1, keepdim=True)
    losses = total.log() + largest - at_target  # [rows, 1]
    if wants_gradient:
        logits /= total
        logits.scatter_add_(1, targets, losses.new_full((), -1).expand_as(losses))
        logits.scatter_add_(1, position, largest * L2WRAP)
        if counts is not None:
            logits *= counts.unsqueeze(1)
    return losses.sum() if counts is None else losses.squeeze(1) @ counts


def _add_gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    part: slice,
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    options: SliceOptions,
) -> None:
    grad_x, grad_weight, grad_extra = grads
    if grad_extra is not None:
        grad_extra[part] = gradient
    gradient = gradient.to(options.matmul_dtype)
    if grad_x is not None:
        torch.mm(gradient, weight, out=grad_x[part])
    if grad_weight is None:
        return
    if grad_weight.dtype == options.matmul_dtype:
        grad_weight.addmm_(gradient.T, inputs)
    else:
        grad_weight += gradient.T @ inputs
