"""One sample spread over processes: memory, arithmetic, and what goes over the wire.

    python -m benchmarks.context_parallel [--versions 4567] [--ranks 1,2,4] [--ctx_len 65536]
                                          [--layers 2 --width 128 --vocab 512] [--repeats 1]

One sample, forward and backward, fp32, one thread a process, gloo. Memory is the most that torch
has given out above what was held before the step, of the rank that takes most; `/ one` is its ratio
to one process. Processor time is that of all ranks together, as a ratio to one process: what the
state-only passes and the folds cost. Wall time is a step's, of the slowest rank and the median
repetition, for as many ranks as there are processors; beside it what `benchmarks.context_forecast`
makes of the parts. Bytes are those a rank receives per layer, counted call by call, of the rank
that receives most, and beside them the formula's:

    forward    (n - 1) m + 2 b     m = 4 B piece, b = 4 B D
    backward   (n - 1) s + 2 b     s = 4 B state

with piece and state in numbers: RWKV-4 3 A + 1 and 3 A; RWKV-5 and 6 D (N + 1) and D N; RWKV-7
2 D N and D N. Refuses to print when the gradients are not those of one process.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing

from benchmarks.context_forecast import added_seconds
from benchmarks.peak_memory import AllocatedPeak
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.token_columns import token_columns
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.models.token_ranks import Awaited
from rwkv_train.ops.head_loss import Targets
from rwkv_train.ops.pieces.message import piece_numbers, state_numbers
from rwkv_train.processors import usable_processors
from rwkv_train.training.distributed.context_group import ContextGroup

HEAD_SIZE = 64
# A row on which all ranks also learn alone, to compare.
CHECKED_LEN = 515
LIMIT = 1e-3


class Shape(NamedTuple):
    """The model and the sample."""

    version: str
    layers: int
    width: int
    vocab: int
    ctx_len: int
    backend: str = "auto"


class Measured(NamedTuple):
    """A rank's step: bytes at the peak, seconds, bytes received in each direction.

    seconds, wall: of a processor and of the clock, 0 where none were asked for; added: those of the
    clock that one process does not need, by the forecast.  error: of the gradients, see `_error`.
    """

    peak: int
    seconds: float
    wall: float
    added: float
    forward: int
    backward: int
    error: float


class CountedGroup(ContextGroup):
    """A group that counts the bytes a rank receives."""

    received = 0

    def gather(self, own: Tensor) -> Awaited[list[Tensor]]:
        """Counts the messages of all others."""
        self.received += (self.size - 1) * own.nbytes
        return super().gather(own)

    def pass_on(self, own: Tensor, distance: int) -> Awaited[Tensor | None]:
        """Counts a neighbour's message, which has the size of the own one."""
        self.received += own.nbytes if 0 <= self.rank - distance < self.size else 0
        return super().pass_on(own, distance)


def formula_bytes(shape: Shape, ranks: int) -> tuple[int, int]:
    """Returns the formula's bytes per layer, forward and backward."""
    heads, size = (
        (shape.width, 1) if shape.version == "4" else (shape.width // HEAD_SIZE, HEAD_SIZE)
    )
    borders = 2 * shape.width if ranks > 1 else 0
    piece = (ranks - 1) * piece_numbers(shape.version, 1, heads, size)
    state = (ranks - 1) * state_numbers(shape.version, 1, heads, size)
    return 4 * (piece + borders), 4 * (state + borders)


def measure(shape: Shape, ranks: int, repeats: int = 1) -> list[Measured]:
    """Returns what every rank took."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (shape, ranks, repeats, folder), nprocs=ranks)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]


def _work(rank: int, shape: Shape, ranks: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    assert distributed.group.WORLD is not None
    group = CountedGroup(distributed.group.WORLD, range(ranks), nullcontext)
    model = _model(shape)
    error = _error(model, group, shape)
    step = _step(model, group, shape, shape.ctx_len)
    group.received = 0
    with AllocatedPeak() as peak:
        loss = _loss(model, group, shape, shape.ctx_len)
        forward = group.received
        loss.backward()
    backward = group.received - forward
    # Kernels and allocator are warm now.
    seconds, wall = _times(step, repeats)
    added = _added(shape, group) if repeats else 0.0
    found = Measured(peak.bytes, seconds, wall, added, forward, backward, error)
    torch.save(found, Path(folder) / str(rank))
    distributed.barrier()
    distributed.destroy_process_group()


def _times(step: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Returns a step's mean processor seconds and median wall seconds. Collective."""
    used, walls = 0.0, []
    for _ in range(repeats):
        distributed.barrier()
        began, own = time.perf_counter(), time.process_time()
        step()
        used += time.process_time() - own
        walls.append(time.perf_counter() - began)
    return used / max(1, repeats), statistics.median(walls or [0.0])


def _added(shape: Shape, group: ContextGroup) -> float:
    tokens = len(_columns(group, shape.ctx_len))
    layer = added_seconds(shape.version, shape.width, HEAD_SIZE, tokens, shape.backend, group)
    return shape.layers * (layer.passes + layer.exchange)


def _model(shape: Shape) -> RWKV:
    config = complete_model(
        ModelConfig(
            rwkv_version=shape.version,
            n_layer=shape.layers,
            n_embd=shape.width,
            vocab_size=shape.vocab,
        )
    )
    model = build_model(config, wkv_backend=shape.backend)
    initialize(model, seed=0, lr_init=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Output matrices start at zero, behind which no gradient would say anything.
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.zeros_like(parameter)
    return model


def _loss(model: RWKV, group: ContextGroup | None, shape: Shape, length: int) -> Tensor:
    text = torch.randint(shape.vocab, (1, length + 1), generator=torch.Generator().manual_seed(1))
    columns = _columns(group, length)
    targets = Targets(text[:, columns + 1], total=float(length))
    alone = group is None or group.size == 1
    ranks: Any = None if alone else group
    loss, _ = model.loss_and_state(text[:, columns], targets, with_state=False, ranks=ranks)
    return loss


def _columns(group: ContextGroup | None, length: int) -> Tensor:
    if group is None:
        return torch.arange(length)
    parts = token_columns(length, group.size, group.rank, None)
    return torch.cat([torch.arange(*part) for part in parts])


def _step(
    model: RWKV, group: ContextGroup | None, shape: Shape, length: int
) -> Callable[[], object]:
    return lambda: _loss(model, group, shape, length).backward()


def _error(model: RWKV, group: ContextGroup, shape: Shape) -> float:
    """Returns the largest relative difference of a gradient from that of one process."""
    alone, shared = copy.deepcopy(model), copy.deepcopy(model)
    _step(alone, None, shape, CHECKED_LEN)()
    _step(shared, group, shape, CHECKED_LEN)()
    errors = []
    for one, other in zip(alone.parameters(), shared.parameters()):
        if one.grad is None or other.grad is None or not one.grad.any():
            continue
        errors.append(float((group.sum(other.grad).result() - one.grad).norm() / one.grad.norm()))
    return max(errors)


class Step(NamedTuple):
    """What all ranks took together: the most of one, of processor time the sum."""

    peak: int
    seconds: float
    wall: float
    added: float

    @staticmethod
    def of(ranks: Sequence[Measured]) -> Step:
        """Returns the step of these ranks."""
        return Step(
            max(rank.peak for rank in ranks),
            sum(rank.seconds for rank in ranks),
            max(rank.wall for rank in ranks),
            max(rank.added for rank in ranks),
        )


def report(shape: Shape, ranks: Sequence[int], repeats: int) -> None:
    """Prints a row for every number of ranks."""
    first: Step | None = None
    for size in ranks:
        found = measure(shape, size, repeats)
        error = max(part.error for part in found)
        if not error < LIMIT:
            raise SystemExit(f"RWKV-{shape.version}, {size} ranks: gradients differ by {error:.1e}")
        step = Step.of(found)
        first = first or step
        forward = max(part.forward for part in found) / shape.layers
        backward = max(part.backward for part in found) / shape.layers
        wanted = formula_bytes(shape, size)
        print(
            f"| RWKV-{shape.version} | {size} | {shape.ctx_len // size:,} | "
            f"{step.peak / 2**20:.1f} | {step.peak / first.peak:.3f} | "
            f"{step.seconds / first.seconds:.2f} | {wall_cells(step, first, size)} | "
            f"{forward:,.0f} | {wanted[0]:,} | {backward:,.0f} | {wanted[1]:,} | {error:.0e} |",
            flush=True,
        )


def wall_cells(step: Step, first: Step, size: int) -> str:
    """Returns wall time, its ratio to one process, and the forecast of it."""
    # More ranks than processors take turns, which says nothing about either.
    if size > usable_processors():
        return "- | - | -"
    forecast = 1 / size + step.added / first.wall
    return f"{step.wall:.2f} | {step.wall / first.wall:.2f} | {forecast:.2f}"


def main() -> None:
    """Prints the table that the module's docstring describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--versions", default="4567")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--ctx_len", type=int, default=65536)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    print(
        f"CPU, torch {torch.__version__}; L{options.layers} D{options.width} V{options.vocab}, one "
        f"sample of {options.ctx_len:,} tokens, fp32, backend {options.backend}\n\n"
        "| version | ranks | tokens each | peak MiB | / one | processor time / one | "
        "wall s | / one | forecast | bytes forward | formula | bytes backward | formula | error |\n"
        + "|---" * 14
        + "|"
    )
    for version in options.versions:
        shape = Shape(
            version, options.layers, options.width, options.vocab, options.ctx_len, options.backend
        )
        report(shape, [int(size) for size in options.ranks.split(",")], options.repeats)


if __name__ == "__main__":
    main()
