"""Checks what callers hand to an operator and prepares it for the backends.

Every fault is a BackendError that names the operator, the argument, what it got and what it
expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends.dispatch import Backend, Call, dispatch
from rwkv_train.ops.precision import compute_dtype

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sequences(op: str, sequences: Mapping[str, Tensor], layout: str) -> Tensor:
    """Returns the first of `sequences` after checking that all share shape, device and float dtype.

    layout: the expected axes, such as "[B, T, H, N]".
    """
    first_name, first = next(iter(sequences.items()))
    axes = layout.count(",") + 1
    for name, tensor in sequences.items():
        if not isinstance(tensor, Tensor):
            got = type(tensor).__name__
            raise BackendError(f"{op}: {name} is {got}, expected a tensor {layout}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise BackendError(
                f"{op}: {name} has dtype {tensor.dtype}, expected one of float32, bfloat16, "
                f"float16, float64"
            )
        if tensor.dim() != axes or tensor.numel() == 0:
            raise BackendError(
                f"{op}: {name} has shape {list(tensor.shape)}, expected {layout}, no axis empty"
            )
        for what in ("shape", "dtype", "device"):
            got, expected = getattr(tensor, what), getattr(first, what)
            if got != expected:
                raise BackendError(
                    f"{op}: {name} has {what} {_text(got)}, expected {_text(expected)} like "
                    f"{first_name}"
                )
    return first


def prepare(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Returns `tensor` in the compute dtype, after checking its shape, dtype and device.

    like: the sequence whose device it must lie on and whose dtype decides the compute dtype.
    """
    check_floats(op, name, tensor, shape, like)
    # Decays act once a token: what 16 bits round off would be raised to the length of the text.
    return tensor.to(compute_dtype(like.dtype))


def check_floats(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Checks that `tensor` holds floats of any kind, its shape, and that it lies where `like` does.

    For a large one that a backend reads as it is: `prepare` may copy it.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise BackendError(f"{op}: {name} is {kind}, expected a float tensor {list(shape)}")
    if tensor.shape != shape:
        raise BackendError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.device != like.device:
        raise BackendError(f"{op}: {name} is on {tensor.device}, expected {like.device}")


def check_reset(op: str, reset: Tensor | None, like: Tensor) -> None:
    """Checks that reset is None or bool [B, T] on the device of `like`."""
    if reset is None:
        return
    shape = like.shape[:2]
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool or reset.shape != shape:
        got = (
            f"{reset.dtype} {list(reset.shape)}"
            if isinstance(reset, Tensor)
            else type(reset).__name__
        )
        raise BackendError(
            f"{op}: reset is {got}, expected a bool tensor {list(shape)}, True where a document "
            f"starts"
        )
    if reset.device != like.device:
        raise BackendError(f"{op}: reset is on {reset.device}, expected {like.device}")


def describe_call(
    op: str, like: Tensor, tensors: tuple[Tensor | None, ...], *, has_state: bool, has_reset: bool
) -> Call:
    """Returns the Call of an operator whose sequences look like `like`, [B, T, A] or [B, T, H, N].

    tensors: every differentiable argument, for `needs_grad`.
    """
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    return Call(
        op=op,
        device=like.device,
        dtype=like.dtype,
        batch=_power_of_two(like.shape[0]),
        time=_power_of_two(like.shape[1]),
        heads=like.shape[2],
        head_size=like.shape[3] if like.dim() == 4 else 1,
        needs_grad=needs_grad,
        has_state=has_state,
        has_reset=has_reset,
    )


def run_heads(
    op: str,
    backends: Sequence[Backend],
    backend: str,
    inputs: tuple[Tensor | None, ...],
    state: Tensor | None,
    reset: Tensor | None,
    **options: Tensor | bool | None,
) -> Any:
    """Runs an operator over heads on inputs that are checked; returns what its backends do.

    inputs: the operator's, in its order, the first one [B, T, H, N].
    state: [B, H, N, N] or None.  Checks state and reset, and raises BackendError.
    options: what the backends take by name.
    """
    like = inputs[0]
    assert like is not None, "the first input is a sequence"
    batch, _, heads, size = like.shape
    if state is not None:
        state = prepare(op, "state", state, (batch, heads, size, size), like)
    check_reset(op, reset, like)
    tensors = (*inputs, state, *(x for x in options.values() if isinstance(x, Tensor)))
    call = describe_call(
        op, like, tensors, has_state=state is not None, has_reset=reset is not None
    )
    return dispatch(backends, backend, call, (*inputs, state, reset), **options)


def check_w_gradient(op: str, w_gradient: Tensor | None, w: Tensor) -> None:
    """Checks that w_gradient, if given, has the shape of w and lies where it does."""
    if w_gradient is not None:
        check_floats(op, "w_gradient", w_gradient, tuple(w.shape), w)


def _power_of_two(count: int) -> int:
    """Returns the power of two that is not below `count`.

    By comparisons: torch.compile turns them into a range of counts for which its code serves.
    """
    power = 1
    while power < count:
        power *= 2
    return power


def _text(value: object) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)
