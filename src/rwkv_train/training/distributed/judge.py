"""Reads every rank's signs of life and reports who is lost, who hangs and who is slow.

Rank zero does it, and the last rank a little later, for the case that rank zero is the one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch.distributed.distributed_c10d import Store

from rwkv_train.errors import FAULT
from rwkv_train.training.distributed.hangs import Hang, find_hang
from rwkv_train.training.distributed.pulse import Beat, Pulse
from rwkv_train.training.distributed.rank_store import RankFault, RankStore
from rwkv_train.training.distributed.stacks import (
    is_stopped,
    own_stack,
    short_stack,
    unanswered_peers,
)
from rwkv_train.training.distributed.stragglers import Stragglers
from rwkv_train.training.launchers.exit_statuses import HUNG

# A busy machine, or a long call into C++, holds up a thread of Python too.
SILENT_SECONDS = 60.0
_SILENT_MARGIN_SECONDS = 5.0
_DEPUTY_SECONDS = 3.0
# By it the others know that they have to tell the fault.
LOST_RANK_ZERO = "rank 0 does not answer any more"
WHY_LOST = "it was killed, or the connection broke"


def is_loss_of_rank_zero(fault: RankFault) -> bool:
    """Tells whether a fault is that nobody answers any more at the store that told of others."""
    return fault.message.startswith(LOST_RANK_ZERO)


@dataclass(frozen=True)
class Limits:
    """Seconds that a rank may be silent, may stand still (0: for ever), and may until warm."""

    silent_seconds: float
    hang_seconds: float
    cold_seconds: float

    @classmethod
    def of(cls, step_seconds: float, hang_seconds: float) -> Limits:
        """Returns the limits that follow from --dist_timeout and --hang_timeout."""
        silent = min(step_seconds, SILENT_SECONDS)
        if hang_seconds:
            # A stopped process is silent, and is to be named as what it is.
            silent = min(silent, hang_seconds + _SILENT_MARGIN_SECONDS)
        # Before the collective calls give up, which name nobody.
        return cls(silent, hang_seconds, max(hang_seconds, 0.9 * step_seconds))


class _Standstill(NamedTuple):
    """A rank's place since its `moves`-th move: its stack, and who does not answer it."""

    moves: int
    stack: str
    peers: list[str]


class Judge:
    """One rank's knowledge of all: `tell` for the own rank, `look` for those who judge.

    ranks, store: over connections of the watch's own; pulse: of this rank's main thread.
    """

    def __init__(
        self,
        ranks: RankStore,
        store: Store,
        pulse: Pulse,
        limits: Limits,
        process: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ranks, self._store, self._pulse = ranks, store, pulse
        self._limits = limits
        self._process = process
        self._now = now
        self._told_moves: int | None = None
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._stragglers = Stragglers()
        self._deputy = ranks.rank != 0
        self._judges = ranks.rank in (0, ranks.world_size - 1)

    def tell(self) -> None:
        """Tells the others what this rank does and, once it stands still, where."""
        beat = self._pulse.beat(self._ranks.host, self._process)
        limit = self._limits.hang_seconds
        # Before the beat that makes the others ask for it.
        if (
            limit
            and beat.still_seconds >= max(limit / 2, limit - 3)
            and beat.moves != self._told_moves
        ):
            self._told_moves = beat.moves
            where = _Standstill(beat.moves, own_stack(), unanswered_peers())
            self._store.set(f"stack/{self._ranks.rank}", json.dumps(where))
        self._store.set(f"alive/{self._ranks.rank}", beat.to_json())

    def look(self) -> None:
        """Reports a rank that is lost or hangs; notes those that are slow."""
        keys = [f"alive/{rank}" for rank in range(self._ranks.world_size)]
        # Before all have come, `RankStore` waits for them, with a limit of its own.
        if not self._judges or not self._store.check(keys):
            return
        now = self._now()
        for rank, beat in enumerate(self._store.multi_get(keys)):
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = (beat, now)
        beats = self._beats(now)
        patience = _DEPUTY_SECONDS if self._deputy else 0.0
        hang = None
        if self._limits.hang_seconds:
            limits = self._limits.hang_seconds + patience, self._limits.cold_seconds + patience
            hang = find_hang(beats, *limits, self._stopped(beats))
        silent = self.silent_ranks(self._limits.silent_seconds + patience)
        if (hang is not None or silent) and self._ranks.has_left():
            # Who has done all does not move any more.
            return
        if hang is not None:
            self._report_hang(hang, beats)
            return
        for rank in silent:
            self._report_silence(rank, beats[rank])
        if not self._deputy:
            lines = self._stragglers.look(beats, now)
            if lines is not None:
                self._pulse.note_slow(lines)

    def silent_ranks(self, seconds: float) -> list[int]:
        """Returns the other ranks that have not told for so long that they live."""
        return [
            rank
            for rank, silent in sorted(self._silences(self._now()).items())
            if rank != self._ranks.rank and silent > seconds
        ]

    def loss_of_rank_zero(self) -> tuple[str, int]:
        """Returns what to tell of rank zero, which does not answer, and the exit status."""
        if 0 not in self._seen:
            return f"{LOST_RANK_ZERO}: {WHY_LOST}", FAULT
        return self._loss(0, Beat.from_json(self._seen[0][0]))

    def _loss(self, rank: int, beat: Beat) -> tuple[str, int]:
        """Returns what to tell of a silent rank, and the exit status: hung, if it is stopped."""
        lost, why = LOST_RANK_ZERO, WHY_LOST
        if rank != 0:
            lost = f"not heard of for {self._limits.silent_seconds:g} s"
            why = "its machine or the connection is gone"
        place = f"last heard of in {beat.phase} after step {beat.step}"
        stopped = _stopped(beat, self._ranks.host)
        return (
            (f"{lost}; {place}{stopped}", HUNG) if stopped else (f"{lost}: {why}; {place}", FAULT)
        )

    def _silences(self, now: float) -> dict[int, float]:
        return {rank: now - since for rank, (_, since) in self._seen.items()}

    def _beats(self, now: float) -> dict[int, Beat]:
        """Returns every rank's beat, its age added to the time for which it stands still."""
        found = {}
        for rank, silent in self._silences(now).items():
            beat = Beat.from_json(self._seen[rank][0])
            found[rank] = replace(beat, still_seconds=beat.still_seconds + silent)
        return found

    def _stopped(self, beats: dict[int, Beat]) -> list[int]:
        """Returns the ranks of this machine that give no sign because they are stopped."""
        silences = self._silences(self._now())
        return [
            rank
            for rank, beat in beats.items()
            if silences[rank] > _DEPUTY_SECONDS
            and beat.host == self._ranks.host
            and is_stopped(beat.process)
        ]

    def _report_silence(self, rank: int, beat: Beat) -> None:
        self._ranks.report(*self._loss(rank, beat), rank, beat.host)
        # It cannot say so itself, and nobody has to wait for it.
        self._ranks.leave(0, rank=rank)

    def _report_hang(self, hang: Hang, beats: dict[int, Beat]) -> None:
        all_wait = len(hang.ranks) == len(beats)
        # Of many that do the same two say it all.
        told = [self._about(rank, beats[rank]) for rank in hang.ranks[:2]]
        if all_wait:
            told += [self._peers_of(rank, beats[rank]) for rank in hang.ranks]
        message = "; ".join([hang.message, *filter(None, told)])
        rank = 0 if all_wait else hang.ranks[0]
        if rank == 0 and self._ranks.rank != 0:
            message = f"{LOST_RANK_ZERO}: it {message}"
        elif rank == 0 and not all_wait:
            # What is told of rank zero is told without its name.
            message = f"rank 0 on {beats[0].host} {message}"
        self._ranks.report(message, HUNG, rank, beats[rank].host)
        for each in hang.ranks:
            if self._standstill_of(each, beats[each]) is None:
                # It cannot say so itself, and nobody has to wait for it.
                self._ranks.leave(0, rank=each)

    def _about(self, rank: int, beat: Beat) -> str:
        """Returns where a rank stands still, in a few words; prints its whole stack."""
        who = f"rank {rank} on {beat.host} (process {beat.process})"
        where = self._standstill_of(rank, beat)
        if where is None:
            # One whose watch lives has told it by now.
            return f"{who} gives no sign of life{_stopped(beat, self._ranks.host)}"
        print(f"stack of {who}:\n{where.stack}", file=sys.stderr, flush=True)
        return f"rank {rank} is in {short_stack(where.stack)}"

    def _peers_of(self, rank: int, beat: Beat) -> str:
        where = self._standstill_of(rank, beat)
        if where is None or not where.peers:
            return ""
        return f"rank {rank} gets no answer from {', '.join(where.peers)}"

    def _standstill_of(self, rank: int, beat: Beat) -> _Standstill | None:
        """Returns what a rank has told of where it stands, unless it has moved since."""
        key = f"stack/{rank}"
        if not self._store.check([key]):
            return None
        where = _Standstill(*json.loads(self._store.get(key)))
        return where if where.moves == beat.moves else None


def _stopped(beat: Beat, own_host: str) -> str:
    if beat.host == own_host and is_stopped(beat.process):
        return ": the process is stopped (SIGSTOP), and a stopped one has no stack to show"
    return ""
