"""What the native backends of the operators share: loading, registration, when to keep states.

The custom ops live in torch's namespace `rwkv`; their schemas are in `cuda/<op>/<op>_ops.cpp`. Each
`src/ops/<op>/native.py` describes its pair of ops to torch as a `Registration`; here it is handed
over once the library that defines them is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.ops import build
from src.ops.dispatch import Call, Refusal
from src.ops.precision import compute_dtype

# Tokens between the states that the forward pass keeps for the backward pass, which computes those
# between them again. 64 costs as much memory per token as one more fp32 input of head size 64.
KEEP_EVERY = 64

# From v's shape and the number of states kept.
Shape = Callable[[Sequence[int], int], tuple[int, ...]]

_refusals: dict[tuple[str, str], Refusal | None] = {}
_registered: set[str] = set()


class Registration(NamedTuple):
    """What torch must know of an operator's pair of custom ops, rwkv::<op>_forward and _backward.

    forward_fake, backward_fake: same arguments as the op, results of the right shape without data.
    setup_context, backward: as for torch.library.register_autograd.
    """

    forward_fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., Any]


def registration(
    op: str, *, v_at: int, state_shape: Shape, checkpoint_shape: Shape
) -> Registration:
    """The registration of an operator whose ops have arguments of this form:

    `(*inputs, state, reset, keep_every) -> (y, final_state, checkpoints)` and
    `(gy, gfinal_state, *inputs, reset, checkpoints, keep_every) -> (*gradients, gstate)`,
    with a gradient for every input. inputs[v_at] is v, [B, T, ...]. state_shape and
    checkpoint_shape follow from v's shape and the number of states kept.
    """

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        v, every = arguments[v_at], arguments[-1]
        dtype = compute_dtype(v.dtype)
        kept = kept_states(v.shape[1], every)
        return (
            v.new_empty(v.shape),
            v.new_empty(state_shape(v.shape, kept), dtype=dtype),
            v.new_empty(checkpoint_shape(v.shape, kept), dtype=dtype),
        )

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, *inputs, _, checkpoints, _ = arguments
        gradients = (tensor.new_empty(tensor.shape) for tensor in inputs)
        return *gradients, checkpoints.new_empty(state_shape(inputs[v_at].shape, 0))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, state, reset, every = inputs
        ctx.save_for_backward(*tensors, reset, output[2])
        ctx.has_state, ctx.every = state is not None, every
        # An unused final state gives None and not a tensor of zeros.
        ctx.set_materialize_grads(False)

    def backward(
        ctx: Any, gy: Tensor | None, gfinal_state: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, reset, checkpoints = ctx.saved_tensors
        gy = torch.zeros_like(inputs[v_at]) if gy is None else gy
        run = getattr(torch.ops.rwkv, f"{op}_backward")
        *gradients, gstate = run(gy, gfinal_state, *inputs, reset, checkpoints, ctx.every)
        return *gradients, gstate if ctx.has_state else None, None, None

    return Registration(forward_fake, backward_fake, setup_context, backward)


def matrix_state_registration(op: str, *, v_at: int) -> Registration:
    """The registration of an operator with v [B, T, H, N] and a state [B, H, N, N]."""

    def state_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
        return v[0], v[2], v[3], v[3]

    def checkpoint_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
        return v[0], v[2], kept, v[3], v[3]

    return registration(
        op, v_at=v_at, state_shape=state_shape, checkpoint_shape=checkpoint_shape
    )


def refusal(call: Call, registration: Registration) -> Refusal | None:
    """None once the op's library for the call's device is built, loaded and registered."""
    key = (call.op, call.device.type)
    if key not in _refusals:
        _refusals[key] = _prepare(*key, registration)
    return _refusals[key]


def keep_every(*tensors: Tensor | None, tokens: int = KEEP_EVERY) -> int:
    """How often to keep a state: every so many tokens if a backward pass may follow, else 0."""
    if not torch.is_grad_enabled():
        return 0
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return tokens if wanted else 0


def kept_states(time: int, every: int) -> int:
    """How many states a forward pass over `time` tokens keeps per head."""
    return 0 if every == 0 else (time + every - 1) // every


def _prepare(op: str, device: str, registration: Registration) -> Refusal | None:
    if device not in ("cpu", "cuda"):
        return Refusal("it serves CPU and CUDA tensors only", news=False)
    if not build.has_sources(op, device):
        return Refusal(f"it has no {device.upper()} kernel", news=False)
    reason = build.load(op, device)
    if reason is not None:
        return Refusal(reason, kind="build")
    if op not in _registered:
        _register(op, registration)
        _registered.add(op)
    return None


def _register(op: str, registration: Registration) -> None:
    forward, backward = f"rwkv::{op}_forward", f"rwkv::{op}_backward"
    torch.library.register_fake(forward, registration.forward_fake)
    torch.library.register_fake(backward, registration.backward_fake)
    torch.library.register_autograd(
        forward, registration.backward, setup_context=registration.setup_context
    )
