"""What the native backends of the operators share: loading, registration, when to keep states.

The custom ops live in torch's namespace `rwkv`; their schemas are in `cuda/<op>/<op>_ops.cpp`. Each
`ops/<op>/native.py` describes its pair of ops to torch as a `Registration`; here it is handed over
once the library that defines them is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends.dispatch import Call, Refusal
from rwkv_train.ops.native import build
from rwkv_train.ops.precision import compute_dtype

# Tokens between the states that the forward pass keeps for the backward pass, which computes those
# between them again. 64 costs as much memory per token as one more fp32 input of head size 64.
CHECKPOINT_INTERVAL = 64

# The kernels that may be asked for by name, numbered as cuda/common/params/launch_options.h does;
# "" leaves the choice to the launcher's arithmetic. scan: over tokens, a block per head (wkv4: per
# row of channels); wide: the same in more and smaller blocks; chunks: matrix products on tensor
# cores; segments: these in two passes, segments of the time axis side by side.
KERNELS = {"": 0, "scan": 1, "wide": 2, "chunks": 3, "segments": 4}
# What the CUDA kernels were made for; each test of the launchers has its home in cuda/common.
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA_HEAD_SIZES = (32, 64, 128, 256)
# Operators over channels, of any number: they have no heads.
CHANNEL_OPS = ("token_shift", "wkv4")
CUDA_CAPABILITY = (8, 0)
CHUNKS_HEAD_SIZE = 64
# Shared memory that a block needs, to the KiB: the largest heads, and the chunked kernels.
LARGE_HEAD_SHARED_BYTES = {"wkv5": 170 << 10, "wkv6": 170 << 10, "wkv7": 171 << 10}
CHUNKS_SHARED_BYTES = {
    "chunks": {"wkv5": 83 << 10, "wkv6": 83 << 10, "wkv7": 107 << 10},
    "segments": {"wkv5": 83 << 10, "wkv6": 83 << 10, "wkv7": 159 << 10},
}

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

    `(*inputs, state, reset, checkpoint_interval, kernel) -> (y, final_state, checkpoints)` and
    `(gy, gfinal_state, *inputs, reset, checkpoints, checkpoint_interval, kernel) ->
    (*gradients, gstate)`, with a gradient for every input. inputs[v_at] is v, [B, T, ...].
    state_shape and checkpoint_shape follow from v's shape and the number of states kept.
    """

    def forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        v, every = arguments[v_at], arguments[-2]
        dtype = compute_dtype(v.dtype)
        kept = kept_states(v.shape[1], every)
        return (
            v.new_empty(v.shape),
            v.new_empty(state_shape(v.shape, kept), dtype=dtype),
            v.new_empty(checkpoint_shape(v.shape, kept), dtype=dtype),
        )

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, *inputs, _, checkpoints, _, _ = arguments
        gradients = (tensor.new_empty(tensor.shape) for tensor in inputs)
        return *gradients, checkpoints.new_empty(state_shape(inputs[v_at].shape, 0))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, state, reset, every, kernel = inputs
        ctx.save_for_backward(*tensors, reset, output[2])
        ctx.has_state, ctx.launch = state is not None, (every, kernel)
        # An unused final state gives None and not a tensor of zeros.
        ctx.set_materialize_grads(False)

    def backward(
        ctx: Any, gy: Tensor | None, gfinal_state: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, reset, checkpoints = ctx.saved_tensors
        gy = torch.zeros_like(inputs[v_at]) if gy is None else gy
        run = getattr(torch.ops.rwkv, f"{op}_backward")
        *gradients, gstate = run(gy, gfinal_state, *inputs, reset, checkpoints, *ctx.launch)
        return *gradients, gstate if ctx.has_state else None, None, None, None

    return Registration(forward_fake, backward_fake, setup_context, backward)


def matrix_state_registration(op: str, *, v_at: int) -> Registration:
    """The registration of an operator with v [B, T, H, N] and a state [B, H, N, N]."""

    def state_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
        return v[0], v[2], v[3], v[3]

    def checkpoint_shape(v: Sequence[int], kept: int) -> tuple[int, ...]:
        return v[0], v[2], kept, v[3], v[3]

    return registration(op, v_at=v_at, state_shape=state_shape, checkpoint_shape=checkpoint_shape)


def refusal(call: Call, registration: Registration) -> Refusal | None:
    """None once a kernel for the call is built, loaded and registered, else what is in the way."""
    unserved = _unserved(call)
    if unserved is not None:
        return unserved
    key = (call.op, call.device.type)
    if key not in _refusals:
        _refusals[key] = _prepare(*key, registration)
    return _refusals[key]


def checkpoint_interval(*tensors: Tensor | None, tokens: int = CHECKPOINT_INTERVAL) -> int:
    """How often to keep a state: every so many tokens if a backward pass may follow, else 0."""
    if not torch.is_grad_enabled():
        return 0
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return tokens if wanted else 0


def kept_states(time: int, every: int) -> int:
    """How many states a forward pass over `time` tokens keeps per head."""
    return 0 if every == 0 else (time + every - 1) // every


def _unserved(call: Call) -> Refusal | None:
    """Why there is no kernel for such a call on its device, whatever is installed; or None."""
    if call.device.type != "cuda":
        if not call.kernel or call.device.type != "cpu":
            return None
        return Refusal("a CPU has one native kernel; ask for backend 'native'", news=False)
    if call.dtype not in CUDA_DTYPES:
        return Refusal(f"its CUDA kernels serve float32, bfloat16 and float16, not {call.dtype}")
    if call.op not in CHANNEL_OPS and call.head_size not in CUDA_HEAD_SIZES:
        sizes = ", ".join(map(str, CUDA_HEAD_SIZES))
        return Refusal(f"its CUDA kernels serve head sizes {sizes}, not {call.head_size}")
    if call.kernel in CHUNKS_SHARED_BYTES and (
        call.dtype != torch.bfloat16 or call.head_size != CHUNKS_HEAD_SIZE
    ):
        return Refusal(
            f"the chunked CUDA kernel serves bfloat16 with head size {CHUNKS_HEAD_SIZE}, not "
            f"{call.dtype} with {call.head_size}"
        )
    return _card_too_small(call)


def _card_too_small(call: Call) -> Refusal | None:
    properties = torch.cuda.get_device_properties(call.device)
    if (properties.major, properties.minor) < CUDA_CAPABILITY:
        return Refusal(
            f"its CUDA kernels need compute capability {CUDA_CAPABILITY[0]}.{CUDA_CAPABILITY[1]}, "
            f"and {properties.name} has {properties.major}.{properties.minor}"
        )
    needed = CHUNKS_SHARED_BYTES.get(call.kernel, {}).get(call.op, 0)
    if call.op not in CHANNEL_OPS and call.head_size == max(CUDA_HEAD_SIZES):
        needed = LARGE_HEAD_SHARED_BYTES[call.op]
    if properties.shared_memory_per_block_optin < needed:
        return Refusal(
            f"this kernel needs {needed >> 10} KiB of shared memory a block, and "
            f"{properties.name} has {properties.shared_memory_per_block_optin >> 10} KiB"
        )
    return None


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

    def refuse(*_: Any) -> None:
        raise BackendError(
            f"{op}: backend 'native' gives gradients once, and gradients of gradients were asked "
            f"for; use backend 'reference' for those"
        )

    # without it torch warns and goes on with zeros
    torch.library.register_autograd(backward, refuse)
