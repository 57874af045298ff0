"""The second copies of one run, from the first look at their places to the end of the last copy."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkv_train.checkpoint.names import BEST, COPIES_FILE, FINAL, STATE_SUFFIX
from rwkv_train.checkpoint.resume import list_states
from rwkv_train.checkpoint.retention import KeepRule
from rwkv_train.checkpoint.state_place import (
    StatePlace,
    clear_copies,
    require_no_other_run,
    run_of_copies,
    size_of_state,
)
from rwkv_train.config.copy_places import PARTNER, copy_places
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import CheckpointError, ConfigError, TrainerError
from rwkv_train.planning.file_sizes import run_files
from rwkv_train.training.checkpointing.copier import Copier, CopyTarget
from rwkv_train.training.checkpointing.partner_copies import PartnerKeeper, PartnerPlace
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.start.file_systems import IN_MEMORY, existing_parent, file_system
from rwkv_train.training.start.lock_file import UnwritableFolderError
from rwkv_train.training.start.memory_limits import host_limits
from rwkv_train.training.start.run_lock import RunLock

# By which the partner waits longer than rank zero.
_MARGIN_SECONDS = 60.0
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

    Rank zero copies; the first rank of the next machine, the partner, keeps what it is sent.
    notes: the places, and which of them cannot be used, for the header.
    """

    def __init__(self, given: RunConfig, ranks: Ranks) -> None:
        self._ranks, launch = ranks, ranks.launch
        places = copy_places(given.safety.state_copies)
        self._sends = launch.rank == 0
        self._keeps = launch.node_rank == 1 and launch.local_rank == 0
        self._partner = next((place for place in places if place.on_partner), None)
        # Those whose folders this process writes to.
        self._places = [p for p in places if (self._keeps if p.on_partner else self._sends)]
        self._locks = {place.folder: PlaceLock(place.folder) for place in self._places}
        self._limit = min(given.safety.copies_wait_minutes * 60, threading.TIMEOUT_MAX / 2)
        self._copier: Copier | None = None
        self._keeper: PartnerKeeper | None = None
        self._run: str | None = None
        self.notes = [f"second copies in {place}" for place in places]
        if self._partner is not None and launch.num_nodes == 1:
            self.notes.append(
                f"no partner machine for {self._partner.folder}: there is one machine"
            )

    def __enter__(self) -> StateCopies:
        # Before anything is read there: what another run is about to replace is no resume point.
        try:
            for folder, lock in self._locks.items():
                try:
                    if folder.is_dir():
                        lock.acquire()
                except (CheckpointError, OSError) as error:
                    self.notes.append(f"WARNING: no copies in {folder} as it is: {error}")
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
            if kind is None and self._keeper is not None:
                # Until rank zero has ended its own wait.
                self._keeper.close(self._limit + _MARGIN_SECONDS)
        finally:
            self.abandon()
        if kind is None:
            self._forget_memory()

    def abandon(self) -> None:
        """Ends at once, as after a fault: the start that follows copies what is missing."""
        for worker in (self._copier, self._keeper):
            if worker is not None:
                worker.abandon()
        if self._copier is None and self._keeper is None:
            self._release()
        self._copier = self._keeper = None

    def require_memory(self, config: ResolvedConfig, run_bytes: int) -> None:
        """Raises ConfigError on the partner when its memory has no room for what it is to keep.

        run_bytes: of that memory, which the run's processes take besides.
        """
        if not self._keeps or self._partner is None or not _is_in_memory(self._partner.folder):
            return
        state, kept = run_files(config).state, self._partner.keep_last + 1
        held = sum(map(size_of_state, (file.path for file in list_states(self._partner.folder))))
        shared = [limit.free for limit in host_limits(1) if limit.is_shared]
        room = shutil.disk_usage(existing_parent(self._partner.folder)).free
        free = min([room, *(left - run_bytes for left in shared)]) + held
        if kept * state > free:
            beside = f" beside the {run_bytes / 1e9:.1f} GB of the run itself" if run_bytes else ""
            raise ConfigError(
                f"--state_copies {PARTNER}{self._partner.folder} is in the memory of this machine, "
                f"of which {kept} states of {state / 1e9:.1f} GB (keep_last and the next one) take "
                f"{kept * state / 1e9:.1f} GB, and {max(0, free) / 1e9:.1f} GB are free{beside}; "
                "lower keep_last, or name a folder on a disk"
            )

    def refuse_other_runs(self, run: str) -> None:
        """Raises ConfigError when a place holds states of another run than `run`."""
        for folder in self._locks:
            # What cannot be read is told when it is to be written.
            with suppress(OSError):
                require_no_other_run(folder, run)

    def begin(
        self, folder: Path, run: str, base: Mapping[str, Any] | None, resumed: Path | None
    ) -> None:
        """Begins to copy what is offered, and the state that the run resumes where it lacks.

        folder: of the project; base: what states remember of a frozen base model. Every rank calls
        it.
        """
        self._run = run
        targets: list[CopyTarget] = []
        for place in self._places:
            rule = KeepRule(place.keep_last, place.keep_every)
            lock = self._locks[place.folder]
            target = StatePlace(place.folder, rule, place.every_steps, run, lock)
            if place.on_partner:
                self._keeper = PartnerKeeper(target, self._ranks.connection("partner"))
            else:
                targets.append(target)
        if self._sends and self._partner is not None and self._ranks.launch.num_nodes > 1:
            store = self._ranks.connection("partner")
            # First: memory is fast.
            targets.insert(0, PartnerPlace(self._partner.folder, self._partner.every_steps, store))
        if not targets:
            return
        self._copier = Copier(targets, lambda state: files_beside(folder, state.name, base))
        if resumed is not None:
            self._copier.offer(resumed)

    def offer(self, state: Path) -> None:
        """Takes note of a state that is complete."""
        if self._copier is not None:
            self._copier.offer(state)

    def _forget_memory(self) -> None:
        """Gives back the memory that copies of this run take on this machine."""
        folder = None if self._partner is None else self._partner.folder
        first = self._ranks.launch.local_rank == 0
        if folder is None or not first or not _is_in_memory(folder):
            return
        with suppress(OSError):
            if self._run is not None and run_of_copies(folder) == self._run:
                clear_copies(folder)
                folder.rmdir()

    def _release(self) -> None:
        for lock in self._locks.values():
            lock.release()


def _is_in_memory(folder: Path) -> bool:
    return file_system(existing_parent(folder)) in IN_MEMORY


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
