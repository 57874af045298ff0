"""What the native backends of the operators share: loading, registration, when to keep states.

The custom ops live in torch's namespace `rwkv`; their schemas are in `cuda/<op>/<op>_ops.cpp`. Each
`src/ops/<op>/native.py` describes its pair of ops to torch as a `Registration`; here it is handed
over once the library that defines them is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.ops import build
from src.ops.dispatch import Call, Refusal
from src.ops.precision import compute_dtype

# Tokens between the states that the forward pass keeps for the backward pass, which computes those
# between them again. 64 costs as much memory per token as one more fp32 input of head size 64.
KEEP_EVERY = 64

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


def matrix_state_registration(op: str, v_at: int) -> Registration:
    """The registration of an operator with a matrix state per head (RWKV-5, 6 and 7).

    Its ops take `(*inputs, state, reset, keep_every) -> (y, final_state, checkpoints)` and
    `(gy, gfinal_state, *inputs, reset, checkpoints, keep_every) -> (*gradients, gstate)`;
    inputs[v_at] is v, [B, T, H, N].
    """

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        v, every = arguments[v_at], arguments[-1]
        batch, time, heads, size = v.shape
        dtype = compute_dtype(v.dtype)
        kept = kept_states(time, every)
        return (
            v.new_empty(v.shape),
            v.new_empty(batch, heads, size, size, dtype=dtype),
            v.new_empty(batch, heads, kept, size, size, dtype=dtype),
        )

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, *inputs, _, checkpoints, _ = arguments
        batch, _, heads, size = inputs[v_at].shape
        gradients = (tensor.new_empty(tensor.shape) for tensor in inputs)
        return *gradients, checkpoints.new_empty(batch, heads, size, size)

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


def refusal(call: Call, registration: Registration) -> Refusal | None:
    """None once the op's library for the call's device is built, loaded and registered."""
    key = (call.op, call.device.type)
    if key not in _refusals:
        _refusals[key] = _prepare(*key, registration)
    return _refusals[key]


def keep_every(*tensors: Tensor | None) -> int:
    """How often to keep a state: KEEP_EVERY if a backward pass may follow, 0 (never) if not."""
    if not torch.is_grad_enabled():
        return 0
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return KEEP_EVERY if wanted else 0


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
