"""What `benchmarks.wkv` runs: inputs, backends, parity check, and the work none can avoid."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rwkv_train.errors import BackendError
from rwkv_train.ops import wkv4, wkv5, wkv6, wkv7
from rwkv_train.ops.arguments import describe_call
from rwkv_train.ops.backends.dispatch import Backend
from rwkv_train.planning.flops import WKV_WORK

# Largest relative RMS error against fp64 on the same rounded inputs: 1e-5, or the rounding of
# results, and for others' operators of intermediate products, to half precision.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
# Parity is checked on so many tokens and this one head (64 channels of wkv4).
CHECKED_TOKENS = 512
CHECKED_HEAD = -1


class Shape(NamedTuple):
    """B, T, H, N; wkv4 has H * N channels."""

    batch: int
    time: int
    heads: int
    size: int


class Inputs(NamedTuple):
    """Leaf tensors by name, all wanting gradients, and the gradient of the output."""

    leaves: dict[str, Tensor]
    gy: Tensor


class Contender(NamedTuple):
    """Something that computes an operator: y from the inputs by name; a backend of ours or not."""

    name: str
    run: Callable[[Mapping[str, Tensor]], Tensor]
    backend: Backend | None = None

    def refusal(self, op: str, inputs: Inputs) -> str | None:
        """Returns why the contender cannot serve the call on this machine, or None."""
        if self.backend is None:
            return None
        leaves = inputs.leaves
        call = describe_call(
            op, leaves["v"], tuple(leaves.values()), has_state=False, has_reset=False
        )
        return self.backend.refuses(call)


class Case(NamedTuple):
    """An operator: its module, its inputs in order, and the least work of one pass.

    sequences: how many inputs are as large as y. flops: of the token loop, per N x N state entry
    (wkv4: per channel) and token, forward and backward.
    """

    module: object
    names: str
    sequences: int
    flops: tuple[int, int]

    def bytes_moved(self, shape: Shape, element: int, backward: bool) -> float:
        """Inputs and output once; for backward again with their gradients. States are small."""
        tensors = self.sequences + 1
        if backward:
            tensors += 2 * self.sequences + 1
        return tensors * element * shape.batch * shape.time * shape.heads * shape.size

    def operations(self, shape: Shape, backward: bool) -> float:
        """Returns the floating-point operations of the token loop."""
        per_entry = sum(self.flops) if backward else self.flops[0]
        entries = shape.heads * shape.size * (1 if self.names == "wukv" else shape.size)
        return per_entry * shape.batch * shape.time * entries


def _flops(version: str) -> tuple[int, int]:
    """Returns the loop's FLOPs, forward and backward, with the states formed again."""
    work = WKV_WORK[version]
    return work.forward, work.backward + work.again


CASES = {
    "wkv4": Case(wkv4.wkv4, "wukv", 2, _flops("4")),
    "wkv5": Case(wkv5.wkv5, "rkvwu", 3, _flops("5")),
    "wkv6": Case(wkv6.wkv6, "rkvwu", 4, _flops("6")),
    "wkv7": Case(wkv7.wkv7, "rwkvab", 6, _flops("7")),
}
_BACKENDS = {
    "wkv4": wkv4.BACKENDS,
    "wkv5": wkv5.BACKENDS,
    "wkv6": wkv6.BACKENDS,
    "wkv7": wkv7.BACKENDS,
}


def make_inputs(op: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Returns ordinary inputs: unit normal, decays of 0.4 to 0.999; wkv7's a of length one."""
    generator = torch.Generator().manual_seed(0)
    batch, time, heads, size = shape

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    full = (batch, time, heads * size) if op == "wkv4" else (batch, time, heads, size)
    head = (heads * size,) if op == "wkv4" else (heads, size)
    decay = full if op in ("wkv6", "wkv7") else head
    values = {name: normal(*full) for name in CASES[op].names if name not in "wu"}
    values |= {"w": normal(*decay).clamp(-3, 3) - 3, "u": normal(*head)}
    if op == "wkv7":
        values["w"] += 3
        values["a"] = torch.nn.functional.normalize(values["a"], dim=-1)
        values["b"] = -values["a"] * torch.rand(full, generator=generator)
    wide = {"w", "u"}
    leaves = {
        name: values[name].to(device, torch.float32 if name in wide else dtype).requires_grad_()
        for name in CASES[op].names
    }
    return Inputs(leaves, normal(*full).to(device, dtype))


def contenders(op: str, device: torch.device) -> list[Contender]:
    """Returns our backends and their kernels, then flash-linear-attention's operator."""
    function, names = CASES[op].module, CASES[op].names

    def ours(backend: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda leaves: function(*(leaves[name] for name in names), backend=backend)[0]

    found = [
        Contender(backend.name, ours(backend.name), backend)
        for backend in _BACKENDS[op]
        if device.type == "cuda" or not backend.kernel
    ]
    if device.type == "cuda" and op in _FLA and importlib.util.find_spec("fla") is not None:
        found.append(Contender("fla", _FLA[op]))
    return found


def outputs_and_gradients(contender: Contender, inputs: Inputs) -> tuple[Tensor, ...]:
    """Returns y and the gradient of every input."""
    y = contender.run(inputs.leaves)
    # of a single token some inputs reach the final state only
    leaves = list(inputs.leaves.values())
    return y, *torch.autograd.grad(y, leaves, inputs.gy, materialize_grads=True)


def parity_fault(op: str, contender: Contender, inputs: Inputs, dtype: torch.dtype) -> str | None:
    """Returns None when the contender agrees with the fp64 reference, else what went wrong.

    The contender runs at full size with the output's gradient cut off after CHECKED_TOKENS, so that
    the reference needs those tokens only; one head is compared, over the whole batch.
    """
    tokens = min(CHECKED_TOKENS, inputs.gy.shape[1])
    gy = inputs.gy.clone()
    gy[:, tokens:] = 0
    try:
        actual = outputs_and_gradients(contender, inputs._replace(gy=gy))
    except BackendError as error:
        return str(error)
    channels = slice(-64, None) if op == "wkv4" else slice(CHECKED_HEAD, None)
    part = Inputs(
        {
            name: head_of(x, channels, tokens).detach().cpu().double().requires_grad_()
            for name, x in inputs.leaves.items()
        },
        head_of(gy, channels, tokens).cpu().double(),
    )
    reference = next(c for c in contenders(op, torch.device("cpu")) if c.name == "reference")
    expected = outputs_and_gradients(reference, part)
    for name, got, right in zip(("y", *(f"g{n}" for n in inputs.leaves)), actual, expected):
        error = relative_error(head_of(got, channels, tokens).cpu().double(), right)
        if not error <= LIMITS[dtype]:
            return f"relative error {error:.1e} of {name} exceeds {LIMITS[dtype]:.0e}"
    return None


def head_of(x: Tensor, channels: slice, tokens: int) -> Tensor:
    """Returns the checked part of a [B, T, ...] sequence or of a per-head parameter."""
    if x.dim() <= 2:
        return x[channels]
    return x[:, :tokens, channels]


def relative_error(got: Tensor, right: Tensor) -> float:
    """Returns the root mean square of the difference over that of `right`."""
    return ((got - right).norm() / right.norm().clamp_min(1e-30)).item()


def saved_bytes(contender: Contender, inputs: Inputs) -> int:
    """Returns the bytes of all tensors kept for the backward pass, inputs included."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        # held until the count is done, lest an address be used twice
        y = contender.run(inputs.leaves)
    total = sum(kept.values())
    del y
    return total


def _fla_wkv6(leaves: Mapping[str, Tensor]) -> Tensor:
    from fla.ops.rwkv6 import chunk_rwkv6

    r, k, v, w, u = (leaves[name] for name in "rkvwu")
    return chunk_rwkv6(r=r, k=k, v=v, w=-torch.exp(w), u=u.to(r.dtype), scale=1.0)[0]


def _fla_wkv7(leaves: Mapping[str, Tensor]) -> Tensor:
    from fla.ops.rwkv7 import chunk_rwkv7

    r, w, k, v, a, b = (leaves[name] for name in "rwkvab")
    log_decay = -0.6065306597126334 * torch.sigmoid(w)
    return chunk_rwkv7(r=r, w=log_decay, k=k, v=v, a=a, b=b, scale=1.0)[0]


_FLA = {"wkv6": _fla_wkv6, "wkv7": _fla_wkv7}
