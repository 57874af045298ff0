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
