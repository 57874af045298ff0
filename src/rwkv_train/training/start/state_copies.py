"""The second copies of one run, from the first look at their places to the end of the last copy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkv_train.checkpoint.names import BEST, COPIES_FILE, FINAL, STATE_SUFFIX
from rwkv_train.checkpoint.retention import KeepRule
from rwkv_train.checkpoint.state_place import StatePlace, require_no_other_run
from rwkv_train.config.copy_places import copy_places
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import CheckpointError, TrainerError
from rwkv_train.training.checkpointing.copier import Copier
from rwkv_train.training.start.run_lock import RunLock, UnwritableFolderError

# Logs and settings, without which a run goes on but has lost its past.
_RECORDS = (".json", ".jsonl", ".txt", ".yaml")


class PlaceLock:
    """A run's lock of one place, taken anew where the file of the one before has gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: RunLock | None = None

    def acquire(self) -> None:
        """Takes the folder, which must exist; nothing if it is held already.

        Raises ConfigError when another run has it, CheckpointError when it cannot be written.
        """
        if self._lock is not None:
            return
        lock = RunLock(self._folder)
        try:
            lock.acquire()
        except UnwritableFolderError as error:
            reason = getattr(error.__cause__, "strerror", None) or "it cannot be written"
            raise CheckpointError(f"{self._folder} cannot be used: {reason}") from error
        self._lock = lock

    def is_owned(self) -> bool:
        """Tells whether the folder is this run's, and shows that the run lives."""
        if self._lock is None or self._lock.fault() is not None:
            return False
        with suppress(TrainerError, OSError):
            self._lock.require_owned()
            return True
        return False

    def release(self) -> None:
        """Gives the folder back."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


class StateCopies:
    """Copies what a run saves to the places of --state_copies between `begin` and its `with` block.

    enabled: False in the processes other than the run's first, for which it does nothing.
    notes: places that cannot be used, for the header.
    """

    def __init__(self, given: RunConfig, *, enabled: bool = True) -> None:
        places = copy_places(given.safety.state_copies) if enabled else ()
        self._locks = [(place, PlaceLock(place.folder)) for place in places]
        self._limit = min(given.safety.copies_wait_minutes * 60, threading.TIMEOUT_MAX)
        self._copier: Copier | None = None
        self.notes = [f"second copies in {place}" for place in places]

    def __enter__(self) -> StateCopies:
        # Before anything is read there: what another run is about to replace is no resume point.
        try:
            for place, lock in self._locks:
                try:
                    if place.folder.is_dir():
                        lock.acquire()
                except (CheckpointError, OSError) as error:
                    self.notes.append(f"WARNING: no copies in {place.folder} as it is: {error}")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._copier is not None:
                self._copier.close(self._limit)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Ends at once, as after a fault: the start that follows copies what is missing."""
        if self._copier is not None:
            self._copier.abandon()
            self._copier = None
        else:
            self._release()

    def refuse_other_runs(self, run: str) -> None:
        """Raises ConfigError when a place holds states of another run than `run`."""
        for place, _ in self._locks:
            # What cannot be read is told when it is to be written.
            with suppress(OSError):
                require_no_other_run(place.folder, run)

    def begin(
        self, folder: Path, run: str, base: Mapping[str, Any] | None, resumed: Path | None
    ) -> None:
        """Begins to copy what is offered, and the state that the run resumes where it lacks.

        folder: of the project; base: what states remember of a frozen base model.
        """
        if not self._locks:
            return
        places = [
            StatePlace(
                place.folder,
                KeepRule(place.keep_last, place.keep_every),
                place.every_steps,
                run,
                lock,
            )
            for place, lock in self._locks
        ]
        self._copier = Copier(places, lambda state: files_beside(folder, state.name, base))
        if resumed is not None:
            self._copier.offer(resumed)

    def offer(self, state: Path) -> None:
        """Takes note of a state that is complete."""
        if self._copier is not None:
            self._copier.offer(state)

    def _release(self) -> None:
        for _, lock in self._locks:
            lock.release()


def files_beside(folder: Path, state: str, base: Mapping[str, Any] | None) -> Sequence[Path]:
    """Returns the files of a project folder that belong beside the copy of a state of this name.

    Those are logs and settings, best.pth, a frozen base model that lies in the folder, and beside
    the end of a run its weights. The other numbered weights are for the world, not for going on.
    """
    found = [] if base is None else [folder / base["path"]]
    for path in sorted(folder.iterdir()):
        ends = state == Path(FINAL).with_suffix(STATE_SUFFIX).name
        is_final = ends and path.name.startswith(f"{Path(FINAL).stem}.") and path.name != state
        # Adapters have such a file too, which belongs beside their weights.
        is_record = path.suffix in _RECORDS and not path.name.startswith(("rwkv-", COPIES_FILE))
        if path.name == BEST or is_final or is_record:
            found.append(path)
    # One elsewhere has its own safe place, and a folder of shards is not copied.
    return [p for p in dict.fromkeys(found) if p.parent == folder and p.is_file()]
