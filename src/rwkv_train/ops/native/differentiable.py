"""Calls of the custom ops that have a derivative, without what torch's registration costs.

torch builds the derivative of a registered op in Python, for any schema: every call looks for
default arguments and takes lists apart as trees, which for a small model is as long as the work of
a kernel. Here the same `Registration` serves a function of ours; what torch registers is what
torch.compile and gradients of gradients go by.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.native.custom_ops import (
    CHECKPOINT_INTERVAL,
    KERNELS,
    checkpoint_interval,
    description_of,
)


def call_op(op: str, *arguments: Any) -> tuple[Any, ...]:
    """Returns the results of rwkv::<op>_forward; those of a list that comes last, one by one.

    The op's library is loaded and registered: `custom_ops.refusal` has returned None.
    """
    if torch.compiler.is_compiling():
        return _spread(getattr(torch.ops.rwkv, f"{op}_forward")(*arguments))
    if not torch.is_grad_enabled():
        with torch._C._AutoDispatchBelowAutograd():
            return _spread(_forward_of(op)(*arguments))
    results: tuple[Any, ...] = _function_of(op).apply(  # type: ignore[no-untyped-call]
        *arguments, op
    )
    return results


def forward(
    op: str,
    inputs: tuple[Tensor, ...],
    state: Tensor | None,
    reset: Tensor | None,
    kernel: str,
    *,
    interval: int = CHECKPOINT_INTERVAL,
) -> tuple[Tensor, Tensor]:
    """Calls rwkv::<op>_forward; returns y and the final state.

    interval: tokens between the states that are kept if a backward pass may follow.
    """
    every = checkpoint_interval(*inputs, state, tokens=interval)
    y, final_state, _ = call_op(op, *inputs, state, reset, every, KERNELS[kernel])
    return y, final_state


def below_autograd() -> AbstractContextManager[Any]:
    """Returns a context in which ops go straight to their kernels, where no gradient is wanted."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


class _Differentiable(torch.autograd.Function):
    """(*arguments, op) -> results; the op comes last, so that arguments have their own numbers."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Any, ...]:
        *given, ctx.op = arguments
        with torch._C._AutoDispatchBelowAutograd():
            found = _forward_of(ctx.op)(*given)
        setup_context = description_of(ctx.op).setup_context
        assert setup_context is not None, f"{ctx.op} has no derivative of its own"
        setup_context(ctx, tuple(given), found)
        singles, listed = _parts(found)
        ctx.singles, ctx.has_list = len(singles), listed is not None
        return (*singles, *(listed or ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        backward = description_of(ctx.op).backward
        assert backward is not None, f"{ctx.op} has no derivative of its own"
        listed = (grads[ctx.singles :],) if ctx.has_list else ()
        unpacked = _Unpacked(ctx)
        with below_autograd():
            found = backward(unpacked, *grads[: ctx.singles], *listed)
        return (*found, None) if isinstance(found, tuple) else (found, None)


class _Unpacked:
    """A context whose saved tensors are there: where a block is recomputed, this recomputes it.

    That runs operators of torch's own, which keep nothing for their derivatives below autograd.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors: tuple[Tensor | None, ...] = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


@cache
def _function_of(op: str) -> type[_Differentiable]:
    """Returns the function of an op under the name that torch would give it, for its profiler."""
    return type(f"GeneratedBackwardFor_rwkv_{op}_forward_default", (_Differentiable,), {})


@cache
def _forward_of(op: str) -> Any:
    return getattr(torch.ops.rwkv, f"{op}_forward").default


def _parts(found: Any) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
    """Returns the results that an op has one by one, and those it has as a list, which is last."""
    if isinstance(found, Tensor):
        return (found,), None
    if isinstance(found, list):
        return (), found
    if isinstance(found[-1], list):
        return found[:-1], found[-1]
    return found, None


def _spread(found: Any) -> tuple[Tensor, ...]:
    singles, listed = _parts(found)
    return (*singles, *(listed or ()))
