"""Ranks that share a row as threads of one process, which meet at a barrier; and their sums.

A thread has a graph of its own, and exchanges in its backward pass as a process would.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rwkv_train.config.token_columns import token_columns
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.state import ModelState
from rwkv_train.models.token_ranks import Awaited
from rwkv_train.ops.head_loss import Targets

T = TypeVar("T")
# More than any exchange takes; a rank that does not come is a fault, not a wait.
SECONDS = 60


class Exchange(NamedTuple):
    """What a rank told in a collective call."""

    name: str
    numbers: int
    dtype: torch.dtype


class ThreadRanks:
    """One of several ranks, with what it has exchanged so far.

    events: beginnings and ends of exchanges, and what a test notes between them.
    """

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, desk: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._desk = barrier, desk
        self.calls: list[Exchange] = []
        self.events: list[str] = []

    def gather(self, own: Tensor) -> Awaited[list[Tensor]]:
        return self._met("gather", own, list)

    def pass_on(self, own: Tensor, distance: int) -> Awaited[Tensor | None]:
        source = self.rank - distance
        comes = 0 <= source < self.size
        return self._met(f"pass on {distance}", own, lambda told: told[source] if comes else None)

    def of_last(self, own: Tensor) -> Awaited[Tensor]:
        return self._met("of last", own, lambda told: told[-1])

    def sum(self, own: Tensor) -> Awaited[Tensor]:
        return self._met("sum", own, lambda told: torch.stack(told).sum(0))

    def once(self, tell: Callable[[], T]) -> T:
        return tell()

    def _met(self, name: str, own: Tensor, chosen: Callable[[list[Tensor]], T]) -> Awaited[T]:
        assert not own.requires_grad or not torch.is_grad_enabled(), "what is sent has no graph"
        self.calls.append(Exchange(name, own.numel(), own.dtype))
        self.events.append(f"{name} begins")
        self._desk[self.rank] = own.detach().clone()
        self._barrier.wait(SECONDS)
        told = [tensor.clone() for tensor in self._desk]
        self._barrier.wait(SECONDS)

        def finish() -> T:
            self.events.append(f"{name} is waited for")
            return chosen(told)

        return Awaited(finish)


def in_threads(size: int, work: Callable[[ThreadRanks], T]) -> tuple[list[T], list[ThreadRanks]]:
    """What `work` returns on every rank, and the ranks; a rank's error is raised here."""
    barrier, desk = threading.Barrier(size), [None] * size
    ranks = [ThreadRanks(rank, size, barrier, desk) for rank in range(size)]
    results: list[Any] = [None] * size
    faults: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ranks[rank])
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        # Not the broken barrier of those who waited for it.
        raise next(
            (f for f in faults if not isinstance(f, threading.BrokenBarrierError)), faults[0]
        )
    return results, ranks


@dataclass
class Row:
    """Rows to learn from: tokens, targets [B, T]; mask, reset [B, T] or None; a state before.

    autocast: whether products are rounded to bf16.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor | None = None
    reset: Tensor | None = None
    state: ModelState | None = None
    autocast: bool = False

    def columns(self, columns: Tensor) -> Row:
        """The row's tokens at these places."""
        return replace(
            self,
            tokens=self.tokens[:, columns],
            targets=self.targets[:, columns],
            mask=None if self.mask is None else self.mask[:, columns],
            reset=None if self.reset is None else self.reset[:, columns],
        )

    @property
    def total(self) -> float:
        """What the weighted losses of the whole row are divided by."""
        return float(self.tokens.numel())


@dataclass
class Learnt:
    """Loss, the gradients of all parameters that learn, and the state afterwards."""

    loss: Tensor
    gradients: dict[str, Tensor]
    state: ModelState | None = None
    calls: list[list[Exchange]] = field(default_factory=list)


def learn(
    model: RWKV, row: Row, ranks: ThreadRanks | None, total: float, of_state: float | None
) -> Learnt:
    """Loss and gradients of one rank, or of one process.

    of_state: the weight of the final state's squares in what is learnt; None: it is not asked for.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=row.autocast):
        loss, state = model.loss_and_state(
            row.tokens,
            Targets(row.targets, row.mask, total),
            state=row.state,
            reset=row.reset,
            with_state=of_state is not None,
            ranks=ranks,
        )
    learnt = loss
    if of_state is not None:
        learnt = loss + of_state * squares(state)
    learnt.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Learnt(loss.detach(), gradients, state)


def squares(state: ModelState | None) -> Tensor:
    """The sum of the squares of a state's shifts and sums, of RWKV-4's what they stand for."""
    assert state is not None, "it was asked for"
    total = torch.zeros((), dtype=state[0].att_shift.dtype)
    for layer in state:
        wkv = layer.wkv
        if isinstance(wkv, tuple):
            aa, bb, pp = wkv
            # Both sums on a scale that is a number: pp itself has no gradient.
            parts = [part * torch.exp(pp.detach()) for part in (aa, bb)]
        else:
            parts = [wkv]
        for part in (layer.att_shift, layer.ffn_shift, *parts):
            total = total + 1e-3 * part.square().sum()
    return total


def learn_alone(model: RWKV, row: Row, of_state: float | None = None) -> Learnt:
    """Loss and gradients of one process."""
    return learn(copy.deepcopy(model), row, None, row.total, of_state)


def learn_together(
    model: RWKV, row: Row, columns: Sequence[Tensor], of_state: float | None = None
) -> Learnt:
    """The sums over ranks of losses and gradients, and the last rank's state.

    columns: of every rank, the places of its tokens.
    of_state: every rank uses its copy of the final state with another share of this weight.
    """
    size = len(columns)

    def work(ranks: ThreadRanks) -> Learnt:
        own, share = row.columns(columns[ranks.rank]), None
        if of_state is not None:
            share = of_state * (ranks.rank + 1) / (size * (size + 1) / 2)
        return learn(copy.deepcopy(model), own, ranks, row.total, share)

    parts, ranks = in_threads(size, work)
    names = {name for part in parts for name in part.gradients}
    assert all(set(part.gradients) == names for part in parts), "the same graph on every rank"
    return Learnt(
        torch.stack([part.loss for part in parts]).sum(),
        {name: torch.stack([part.gradients[name] for part in parts]).sum(0) for name in names},
        parts[-1].state,
        [rank.calls for rank in ranks],
    )


def pieces(*borders: int) -> list[Tensor]:
    """Places of the tokens from one border to the next."""
    return [torch.arange(a, b) for a, b in pairwise(borders)]


def columns_of(length: int, ranks: int, chunk_len: int | None) -> list[Tensor]:
    """Places of the tokens of every rank, as a run cuts its samples."""
    return [
        torch.cat([torch.arange(*part) for part in token_columns(length, ranks, rank, chunk_len)])
        for rank in range(ranks)
    ]


def error(found: Learnt, expected: Learnt) -> float:
    """The largest error of loss, gradients and state, each relative to the largest number in it."""
    assert found.gradients.keys() == expected.gradients.keys()
    pairs = [(found.loss, expected.loss)]
    pairs += [(found.gradients[name], expected.gradients[name]) for name in expected.gradients]
    if found.state is not None and expected.state is not None:
        pairs.append((squares(found.state).detach(), squares(expected.state).detach()))
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs)
