"""The ranks of a run from the first to the last: started, met, watched, and ended together.

Whatever ends one of them ends all, with one exit status and one line, which rank zero prints.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from torch.distributed.distributed_c10d import Store

from rwkv_train.errors import FAULT, TrainerError, TrainingError, exit_status
from rwkv_train.training.distributed.judge import WHY_LOST, Limits, is_loss_of_rank_zero
from rwkv_train.training.distributed.leaving import INTERRUPTED, Leaving, bounded, first_line
from rwkv_train.training.distributed.lone_watch import LoneWatch
from rwkv_train.training.distributed.pulse import Pulse
from rwkv_train.training.distributed.rank_store import (
    ANNOUNCED_AFTER_SECONDS,
    RankFault,
    RankStore,
    RemoteRankError,
)
from rwkv_train.training.distributed.rendezvous import (
    LateRankError,
    check_all_there,
    check_place,
    connection,
    meet,
)
from rwkv_train.training.distributed.watch import Watch
from rwkv_train.training.environment import child_variables, forget, libraries_told, variables
from rwkv_train.training.launchers.children import Children, own_command
from rwkv_train.training.launchers.decide import CHILD_VARIABLE
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.launchers.restarts import forbid_restart, is_final
from rwkv_train.training.signals import StopRequest, ignore_launchers

START_SECONDS = 300.0
STEP_SECONDS = 1800.0
_STARTS_ANNOUNCED_AFTER_SECONDS = 30.0
# Launchers stop all ranks when one of them has ended, and some kill those that take their time.
UNKNOWN_LOSS = "the connection to another rank broke, and {} came before it was known which"
# Time to leave: for children, and for ranks elsewhere to learn why.
_LEAVE_SECONDS = 30.0
_LEAVE_AFTER_FAULT_SECONDS = 10.0
# How much later than the first the last process of a launcher gets as far as to ask.
_LATE_SECONDS = 20.0
_LEAVE_LATEST_SECONDS = 30.0
# What libraries say when a rank has gone, by which its own words are told from a fault of ours.
_CONNECTION = re.compile(r"gloo|nccl|connection|peer|store|socket|broken pipe|time[d ]?.?out", re.I)


class Ranks:
    """One process of a run and its way to the others; alone, it has none and needs none.

    launch: the decision; argv: the arguments, for the processes that it starts; seconds,
    hang_seconds: of --dist_timeout, None for the defaults, and of --hang_timeout; refusal: why this
    rank leaves once it has met the others, which counts as well when it does not meet them.
    """

    def __init__(
        self,
        launch: Launch,
        argv: Sequence[str],
        seconds: float | None = None,
        hang_seconds: float = 0.0,
        refusal: TrainerError | None = None,
    ) -> None:
        self.launch = launch
        self.pulse = Pulse()
        self._hang_seconds = hang_seconds
        self._refusal = refusal
        self.step_seconds = STEP_SECONDS if seconds is None else seconds
        self.leaving = Leaving(self.step_seconds, self._cause if launch.world_size > 1 else None)
        self._start_seconds = START_SECONDS if seconds is None else seconds
        self._argv = argv
        self.stop = StopRequest()
        self._store: Callable[[str], Store] | None = None
        self._children: Children | None = None
        self._watch: Watch | None = None
        self._telling = threading.Lock()
        self._told = False
        self.store = RankStore()

    def run(self, body: Callable[[Ranks], int]) -> int:
        """Returns the exit status of `body`, that of the fault where any rank has one.

        Alone, what `body` raises is raised.
        """
        if self.launch.world_size == 1:
            # DeepSpeed asks for its rank although there is one process only.
            with libraries_told(self.launch.variables()), self._watched_alone():
                return body(self)
        fault: RankFault | None = None
        status = 0
        try:
            self._start()
            forget(CHILD_VARIABLE)
            with libraries_told(self.launch.variables()):
                status = body(self)
        except RemoteRankError as error:
            # One that was told in a collective call is not in the store yet. A connection that
            # rank zero was lost with never answers.
            fault = told = error.fault
            if not is_loss_of_rank_zero(told):
                fault = self._report(told.message, told.status, told.rank, told.host)
        except LateRankError as error:
            # A run that goes well is not to end because of it.
            fault = RankFault(0, "", str(error), exit_status(error))
            self._tell(fault)
            return fault.status
        except KeyboardInterrupt:
            fault = self._report(INTERRUPTED, 130)
        except TrainerError as error:
            fault = self._own(error)
        # Anything: the other ranks wait for this one.
        except Exception as error:
            fault = self._cause(error)
        return self._end(status, fault)

    def connection(self, name: str) -> Store:
        """Returns a connection of its own to the store of the run."""
        assert self._store is not None, "a rank alone has no store"
        return self._store(name)

    def own_rank_store(self) -> RankStore:
        """Returns access to the other ranks over a connection of its own, for another thread."""
        return self._rank_store() if self.launch.world_size > 1 else RankStore()

    def all_there(self) -> None:
        """Returns once all ranks have come this far. Collective; raises as `check_all_there`."""
        if self.launch.world_size > 1:
            check_all_there(self.store, self.connection("place"), self.launch)

    @contextmanager
    def _watched_alone(self) -> Iterator[None]:
        limits = Limits.of(self.step_seconds, self._hang_seconds)
        if not limits.hang_seconds:
            yield
            return
        watch = LoneWatch(self.pulse, limits.hang_seconds, limits.cold_seconds, self.leaving.hurry)
        try:
            yield
        finally:
            watch.stop()

    def _start(self) -> None:
        """Meets the others, starting those of this machine; raises TrainerError."""
        launch = self.launch
        if launch.starts_children:
            print(f"starting {launch.local_size} processes ...", file=sys.stderr, flush=True)
        try:
            base, beginning = meet(launch, self._start_seconds)
        except TrainingError as error:
            # Who does not answer may have been refused likewise, and has left.
            raise self._refusal or error from None
        self._store = lambda name: connection(base, beginning, name)
        if launch.main_port == 0:
            launch = self.launch = replace(launch, main_port=base.port)
        self.store = self._rank_store()
        check_place(self.store, self.connection("place"), launch)
        if launch.starts_children:
            told = [launch.child(local, os.getpid()) for local in range(1, launch.local_size)]
            self._children = Children(
                own_command(self._argv),
                {
                    child.rank: child_variables(
                        {**child.variables(), CHILD_VARIABLE: child.to_json()}
                    )
                    for child in told
                },
            )
        self._watch = Watch(
            self._rank_store(),
            self.connection("watch"),
            self.pulse,
            self._children,
            self._forced,
            Limits.of(self.step_seconds, self._hang_seconds),
        )

    def _rank_store(self) -> RankStore:
        launch = self.launch
        return RankStore(
            self.connection("ranks"),
            rank=launch.rank,
            world_size=launch.world_size,
            host=socket.gethostname(),
            machines=launch.num_nodes,
            seconds=self.step_seconds,
            start_seconds=self._start_seconds,
            announces_after=self._announces_after(),
        )

    def _announces_after(self) -> float | None:
        launch = self.launch
        if launch.local_rank != 0:
            return None
        # That they are being started has been said.
        alone = launch.starts_children and launch.num_nodes == 1
        return _STARTS_ANNOUNCED_AFTER_SECONDS if alone else ANNOUNCED_AFTER_SECONDS

    def _own(self, error: TrainerError) -> RankFault:
        """Returns the fault to tell for an error of this rank, which others may have too."""
        fault = self._report(error.in_one_line(), exit_status(error))
        if self.launch.rank == 0 and fault.status == exit_status(error):
            # All ranks meet most faults, and the name of the fastest helps nobody.
            return replace(fault, rank=0, message=error.in_one_line())
        return fault

    def _report(
        self, message: str, status: int, rank: int | None = None, host: str | None = None
    ) -> RankFault:
        with suppress(RuntimeError):
            if self.store.world_size > 1:
                return self.store.report(message, status, rank, host)
        # There is no store, or none any more: one process tells its own machine.
        fault = RankFault(0, "", message, status)
        if self.launch.speaks_alone():
            self._tell(fault)
        return fault

    def _cause(self, error: Exception) -> RankFault:
        """Returns the fault behind an exception, which may be another rank's that has gone."""
        if self._watch is not None and _CONNECTION.search(f"{type(error).__name__} {error}"):
            seconds = 4.0 if self.launch.rank == 0 else 8.0
            found = self._watch.wait_for_cause(seconds, self.stop.has_come)
            if isinstance(found, RankFault):
                return found
            if found is not None:
                self.store.leave(0, rank=found)
                return self._report(f"does not answer any more: {WHY_LOST}", FAULT, rank=found)
            if self.stop.has_come():
                return self._report(UNKNOWN_LOSS.format(self.stop.name), FAULT)
        traceback.print_exception(error)
        return self._report(first_line(error), FAULT)

    def _end(self, status: int, fault: RankFault | None) -> int:
        """Leaves the others and returns the exit status."""
        if fault is not None:
            status = fault.status
            self._tell_if_first(fault)
        if is_final(status):
            # What all of them leave with, although launchers end the others once one has.
            ignore_launchers()
        if self._watch is not None:
            self._watch.stop()
        with suppress(RuntimeError):
            self._leave(status, fault)
        if self._children is not None:
            self._children.wait(_LEAVE_SECONDS)
        return status

    def _leave(self, status: int, fault: RankFault | None) -> None:
        """Leaves the store, which rank zero keeps open for those who need it to learn why."""
        # Launchers end the others once one has left: nobody does before all know a last word.
        final = is_final(status)
        if self.launch.rank != 0 and not final:
            self.store.leave(0)
            return
        seconds = _LEAVE_SECONDS if fault is None else _LEAVE_AFTER_FAULT_SECONDS
        # A rank that is on its way would find nobody, and wait, and leave with another status.
        on_the_way = fault is not None and (final or not self.launch.agent_store)
        late = min(_LATE_SECONDS, self._start_seconds) if on_the_way else 0.0
        hurries = None if fault is None or final else self.stop.has_come
        self.store.leave(max(seconds, late), late_seconds=late, hurries=hurries)

    def _tell_if_first(self, fault: RankFault) -> None:
        if self.launch.rank == 0 or (is_loss_of_rank_zero(fault) and self.launch.speaks_alone()):
            self._tell(fault)

    def _tell(self, fault: RankFault) -> None:
        """Prints a fault, once."""
        with self._telling:
            if not self._told:
                self._told = True
                kind = "" if fault.message == INTERRUPTED else "error: "
                print(f"{kind}{fault}", file=sys.stderr, flush=True)

    def _forced(self, fault: RankFault) -> None:
        """Does what cannot wait for the main thread: finishes a save, tells the fault."""
        # Before a save is finished, which may take minutes.
        self._tell_if_first(fault)
        self.leaving.hurry(fault)
        if not is_loss_of_rank_zero(fault):
            # The main thread may hold the connection, and wait for an answer that never comes.
            bounded(_LEAVE_LATEST_SECONDS, lambda: self._leave(fault.status, fault))
        if self._children is not None:
            self._children.wait(_LEAVE_AFTER_FAULT_SECONDS)
        forbid_restart(fault.status, variables())
