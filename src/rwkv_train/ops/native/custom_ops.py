"""The part that the native backends share: loading, registration, when to keep states.

The custom ops live in torch's namespace `rwkv`; their schemas are in `cuda/<op>/<op>_ops.cpp`. Each
`ops/<op>/native.py` describes its pair of ops to torch as a `Registration` and states what its
kernels need; here the description is handed over once the library that defines them is loaded.
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
# The CUDA kernels were made for these; the launchers check them again (cuda/common).
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA_HEAD_SIZES = (32, 64, 128, 256)
CUDA_CAPABILITY = (8, 0)
# The kernels on tensor cores, which hold a chunk of one head size and dtype in shared memory.
CHUNK_KERNELS = ("chunks", "segments")
CHUNKS_HEAD_SIZE = 64

# From v's shape and the number of states kept.
Shape = Callable[[Sequence[int], int], tuple[int, ...]]

_refusals: dict[tuple[str, str], Refusal | None] = {}
_registered: dict[str, Registration | PlainOps] = {}


class SharedBytes(NamedTuple):
    """Shared memory that a block of an operator's CUDA kernels needs, to the KiB.

    large_heads: of the scans with the largest head size; smaller heads fit every card.
    """

    large_heads: int
    chunks: int
    segments: int

    def needed(self, call: Call) -> int:
        """Returns the bytes that the kernel of `call` needs."""
        if call.head_size == max(CUDA_HEAD_SIZES):
            return self.large_heads
        return {"chunks": self.chunks, "segments": self.segments}.get(call.kernel, 0)


class Registration(NamedTuple):
    """The description of an operator's pair of custom ops, rwkv::<op>_forward and _backward.

    forward_fake, backward_fake: same arguments as the op, results of the right shape without data.
    setup_context, backward: as for torch.library.register_autograd; None for ops that are called
    inside an autograd.Function, which hands on one of its arguments.
    shared_bytes: None for kernels over channels, of any number: they have no heads.
    """

    forward_fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None
    shared_bytes: SharedBytes | None = None


class PlainOps(NamedTuple):
    """The custom ops of an operator that has no derivative by itself, by name.

    fakes: as those of `Registration`. A function around the ops has the derivative.
    """

    fakes: dict[str, Callable[..., Any]]
    shared_bytes: SharedBytes | None = None


def registration(
    op: str,
    *,
    v_at: int,
    state_shape: Shape,
    checkpoint_shape: Shape,
    shared_bytes: SharedBytes | None = None,
) -> Registration:
    """Returns the registration of an operator whose ops have arguments of this form:

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

    return Registration(forward_fake, backward_fake, setup_context, backward, shared_bytes)


def refusal(call: Call, registration: Registration | PlainOps) -> Refusal | None:
    """Returns what stands in the way of the call; None once its kernel is loaded and registered."""
    unserved = _unserved(call, registration.shared_bytes)
    if unserved is not None:
        return unserved
    # Asked before every call, and the first answer may cost a compilation.
    key = (call.op, call.device.type)
    if key not in _refusals:
        _refusals[key] = _prepare(*key, registration)
    return _refusals[key]


def checkpoint_interval(*tensors: Tensor | None, tokens: int = CHECKPOINT_INTERVAL) -> int:
    """Returns how often to keep a state: every `tokens` if a backward pass may follow, else 0."""
    if not torch.is_grad_enabled():
        return 0
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return tokens if wanted else 0


def kept_states(time: int, every: int) -> int:
    """Returns how many states a forward pass over `time` tokens keeps per head."""
    return 0 if every == 0 else (time + every - 1) // every


def _unserved(call: Call, shared_bytes: SharedBytes | None) -> Refusal | None:
    """Returns why no kernel serves such a call on its device, whatever is installed; or None."""
    if call.device.type != "cuda":
        if not call.kernel or call.device.type != "cpu":
            return None
        return Refusal("a CPU has one native kernel; ask for backend 'native'", news=False)
    if call.dtype not in CUDA_DTYPES:
        return Refusal(f"its CUDA kernels serve float32, bfloat16 and float16, not {call.dtype}")
    if shared_bytes is not None and call.head_size not in CUDA_HEAD_SIZES:
        sizes = ", ".join(map(str, CUDA_HEAD_SIZES))
        return Refusal(f"its CUDA kernels serve head sizes {sizes}, not {call.head_size}")
    if call.kernel in CHUNK_KERNELS and (
        call.dtype != torch.bfloat16 or call.head_size != CHUNKS_HEAD_SIZE
    ):
        return Refusal(
            f"the chunked CUDA kernel serves bfloat16 with head size {CHUNKS_HEAD_SIZE}, not "
            f"{call.dtype} with {call.head_size}"
        )
    needed = 0 if shared_bytes is None else shared_bytes.needed(call)
    return card_too_small(call, needed)


def card_too_small(call: Call, needed: int) -> Refusal | None:
    """Returns a refusal when the card of `call` is too old or has less shared memory than needed.

    needed: bytes per block.
    """
    properties = torch.cuda.get_device_properties(call.device)
    if (properties.major, properties.minor) < CUDA_CAPABILITY:
        return Refusal(
            f"its CUDA kernels need compute capability {CUDA_CAPABILITY[0]}.{CUDA_CAPABILITY[1]}, "
            f"and {properties.name} has {properties.major}.{properties.minor}"
        )
    # torch's stubs lack this property of the card.
    available: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    if available < needed:
        return Refusal(
            f"this kernel needs {needed >> 10} KiB of shared memory a block, and "
            f"{properties.name} has {available >> 10} KiB"
        )
    return None


def _prepare(op: str, device: str, registration: Registration | PlainOps) -> Refusal | None:
    if device not in ("cpu", "cuda"):
        return Refusal("it serves CPU and CUDA tensors only", news=False)
    if not build.has_sources(op, device):
        return Refusal(f"it has no {device.upper()} kernel", news=False)
    reason = build.load(op, device)
    if reason is not None:
        return Refusal(reason, kind="build")
    register(op, registration)
    return None


def description_of(op: str) -> Registration:
    """Returns how a registered operator was described to torch."""
    found = _registered[op]
    assert isinstance(found, Registration), f"{op} has no derivative"
    return found


def register(op: str, registration: Registration | PlainOps) -> None:
    """Describes the custom ops of an operator to torch, once; their library is loaded."""
    if op in _registered:
        return
    _registered[op] = registration
    if isinstance(registration, PlainOps):
        for name, fake in registration.fakes.items():
            torch.library.register_fake(f"rwkv::{name}", fake)
        return
    forward, backward = f"rwkv::{op}_forward", f"rwkv::{op}_backward"
    torch.library.register_fake(forward, registration.forward_fake)
    torch.library.register_fake(backward, registration.backward_fake)
    if registration.backward is not None:
        torch.library.register_autograd(
            forward, registration.backward, setup_context=registration.setup_context
        )

    def refuse(*_: Any) -> None:
        raise BackendError(
            f"{op}: backend 'native' gives gradients once, and gradients of gradients were asked "
            f"for; use backend 'reference' for those"
        )

    # Without it torch warns and continues with zeros.
    torch.library.register_autograd(backward, refuse)
