"""What a step is made of, by kind of operator: time (torch's profiler), bytes, launches.

The bytes of an operator are those of its tensors, read or written once each: what it moves when
nothing stays in a cache. Views move nothing and are no launches.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_train.training.profiling.operator_words import KINDS, operator_kind
from rwkv_train.training.whole_step import TimedShape

PROFILED_STEPS = 3


class Share(NamedTuple):
    """What one kind of operator takes of a step."""

    seconds: float
    bytes: float
    launches: float


def shares(step: Callable[[], object]) -> dict[str, Share]:
    """Returns kind -> what it takes of a step, which is made a few times."""
    step()
    with TrafficMode() as traffic:
        step()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
    microseconds: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        on_gpu = torch.cuda.is_available()
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # What is not an operator is the host's own work or a name that a range was given.
        if "::" in event.key:
            microseconds[operator_kind(event.key)] += own
    return {
        kind: Share(
            microseconds[kind] / 1e6 / PROFILED_STEPS, traffic.bytes[kind], traffic.launches[kind]
        )
        for kind in KINDS
    }


class TrafficMode(TorchDispatchMode):
    """Counts the bytes and launches of the operators that run under it, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, float] = defaultdict(float)
        self.launches: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        # not the data's address, which tensors without data do not have
        places = {x.untyped_storage()._cdata for x in given}
        new = [x for x in made if x.untyped_storage()._cdata not in places]
        # In place: what is written is among what was given, and is read too where it is summed.
        if new or func._schema.is_mutable:
            self.add(
                operator_kind(func._schema.name),
                sum(map(_moved, given)) + sum(map(_moved, new)),
                given,
            )
        return out

    def add(self, kind: str, moved: int, given: Sequence[Tensor]) -> None:
        """Counts an operator that moves so many bytes; given: the tensors that it reads."""
        self.bytes[kind] += moved
        self.launches[kind] += 1


def _moved(tensor: Tensor) -> int:
    """Returns the bytes of a tensor, each once: an expanded axis has the same ones again."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count * tensor.element_size()


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Lets fused operators be served by their references: torch's operators one by one.

    Not WKV, whose reference is a loop over tokens, and AdamW, which torch has fused too.
    """
    before = {
        module: module.BACKENDS
        for name, module in list(sys.modules.items())
        if name.startswith("rwkv_train.ops.") and hasattr(module, "BACKENDS")
    }
    for module, backends in before.items():
        if not module.__name__.rpartition(".")[2].startswith(("wkv", "adamw")):
            module.BACKENDS = tuple(b for b in backends if b.name == "reference")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, backends in before.items():
            module.BACKENDS = backends  # type: ignore[attr-defined]


def compare(make_step: Callable[[], Callable[[], object]], shape: TimedShape) -> list[str]:
    """Returns a table: the kinds of a step with the fused operators, and without them.

    make_step: returns the step of a new model.
    """
    fused = shares(make_step())
    with plain_operators():
        plain = shares(make_step())
    unit = 2 * shape.tokens * shape.width * shape.layers
    lines = [
        f"    {'':<24}{'ms':>9}{'share':>8}{'GB':>8}{'a layer':>9}{'launches':>10}"
        f"{'| without: ms':>16}{'share':>8}{'GB':>8}{'a layer':>9}{'launches':>10}"
    ]
    wholes = [sum(share.seconds for share in table.values()) for table in (fused, plain)]
    for kind in KINDS:
        cells = [
            f"{share.seconds * 1e3:>{width}.1f}{share.seconds / whole:>8.1%}"
            f"{share.bytes / 1e9:>8.2f}{share.bytes / unit:>9.1f}{share.launches:>10,.0f}"
            for share, whole, width in zip((fused[kind], plain[kind]), wholes, (9, 16))
        ]
        lines.append(f"    {kind:<24}{''.join(cells)}")
    return lines
