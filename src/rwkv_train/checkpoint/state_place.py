"""One folder of second copies: what a run has written there, and which of it stays.

`copies.json` names the run and its copies by digest. Only those are counted and deleted: whatever
else lies there is kept, and where its name is needed it gets another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rwkv_train.checkpoint.copy_files import copy_file_verified, copy_state_verified
from rwkv_train.checkpoint.names import COPIES_FILE, kept_path
from rwkv_train.checkpoint.resume import StateFile, list_states
from rwkv_train.checkpoint.retention import KeepRule, Retention, WrittenFile
from rwkv_train.errors import CheckpointError, ConfigError, short_reason
from rwkv_train.files import remove, remove_partial_files, restore_replaced, write_atomically

# More than files of records grow while they are copied.
_SPARE_BYTES = 1 << 20


class FolderLock(Protocol):
    """A hold on a folder, which keeps other runs out of it."""

    def acquire(self) -> None:
        """Takes the folder, if it is not taken yet. Raises ConfigError or CheckpointError."""
        ...

    def is_owned(self) -> bool:
        """Tells whether the folder is still this run's."""
        ...

    def release(self) -> None:
        """Gives the folder back."""
        ...


def require_no_other_run(folder: Path, run: str) -> None:
    """Raises ConfigError for a place that holds states of another run. Raises OSError."""
    for state in list_states(folder):
        if state.run and state.run != run:
            raise ConfigError(
                f"--state_copies {folder} holds {state.path.name} of another run "
                f"({state.run[:8]}, this one is {run[:8]}); name another folder, or move the "
                "states there away"
            )


def run_of_copies(folder: Path) -> str | None:
    """Returns the id of the run whose copies a place holds; None when it does not tell."""
    try:
        return str(json.loads((folder / COPIES_FILE).read_bytes())["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


class StatePlace:
    """A place of the run with the id `run`; nothing there is touched before `claim`.

    rule: the copies that stay. every_steps: steps from one copy to the next, None: every state.
    newest: the last copy of this run there.
    """

    def __init__(
        self, folder: Path, rule: KeepRule, every_steps: int | None, run: str, lock: FolderLock
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self._rule = rule
        self._run = run
        self._lock = lock
        self._retention: Retention | None = None
        self._device: int | None = None
        # Size and time of what was copied beside the states.
        self._beside: dict[str, tuple[int, int]] = {}
        self.newest: StateFile | None = None

    def claim(self) -> None:
        """Takes the place for this run, making the folder, and clears up what a killed copy left.

        Raises CheckpointError when it cannot be used, and ConfigError when it is another run's.
        """
        folder = self.folder
        if self._retention is not None:
            self._require_same_folder()
            return
        with self._disk_faults():
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            require_no_other_run(folder, self._run)
            restore_replaced(folder)
            remove_partial_files(folder)
            written = _written_by(folder, self._run)
            retention = Retention(folder, self._rule, record=written)
            ours = [state for state in list_states(folder) if _is_in(written, state)]
            self._write_record(written)
            self._device = folder.stat().st_dev
        self._retention = retention
        self.newest = ours[0] if ours else None

    def copy(self, state: StateFile, beside: Sequence[Path], go_on: Callable[[], bool]) -> None:
        """Copies a state, after the files that belong beside it; deletes older copies then.

        go_on: as in `copy_file_verified`. Raises CheckpointError, ConfigError or
        CopyAbandonedError; the copies that were there before are then unchanged.
        """
        self.claim()
        with self._disk_faults():
            changed = [path for path in beside if self._has_changed(path)]
            self.require_room(state.path, sum(map(size_of_state, [state.path, *changed])))
            for path in changed:
                signature = _signature_of(path)
                copy_file_verified(path, self.folder / path.name, go_on)
                self._beside[path.name] = signature
        self.take(
            state, lambda target: copy_state_verified(state.path, target, state.digest, go_on)
        )

    def take(self, state: StateFile, write: Callable[[Path], None]) -> None:
        """Lets a state be written under its name; deletes older copies then.

        write: writes it to a path, whole or not at all. Raises as `copy`, and what `write` raises.
        """
        self.claim()
        retention = self._retention
        assert retention is not None, "a place that is claimed has a record"
        assert state.position is not None, "a state that was just written can be read"
        target = self.folder / state.path.name
        with self._disk_faults():
            self._keep_others(target)
            # Before: a run that is killed once the name is there still knows it as its own.
            entry = WrittenFile(state.digest, state.position, state.step)
            self._write_record({**retention.record(), target.name: asdict(entry)})
            write(target)
            retention.add(target, state.digest, state.position, state.step)
            retention.apply(target)
            self._write_record(retention.record())
        self.newest = state

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be used: {short_reason(error)}") from error

    def release(self) -> None:
        """Gives the folder back to other runs."""
        self._lock.release()

    def _require_same_folder(self) -> None:
        """Raises CheckpointError when the folder went, ConfigError when another run took it."""
        folder = self.folder
        with self._disk_faults():
            device = folder.stat().st_dev
        # Where a mount is gone its mount point is left, on a disk that is not meant.
        if device != self._device:
            raise CheckpointError(f"{folder} is on another disk than before; is it mounted?")
        if not self._lock.is_owned():
            self._lock.release()
            self._lock.acquire()

    def _write_record(self, written: dict[str, Any]) -> None:
        content = json.dumps({"run": self._run, "written": written}, indent=1) + "\n"
        write_atomically(self.folder / COPIES_FILE, content.encode())

    def _has_changed(self, path: Path) -> bool:
        """Tells whether a file is there and not yet here as it is now."""
        try:
            signature = _signature_of(path)
        except OSError:
            return False
        copy = self.folder / path.name
        return self._beside.get(path.name) != signature or not copy.is_file()

    def require_room(self, path: Path, size: int) -> None:
        """Raises CheckpointError when the place has no room for so many bytes. Raises OSError."""
        needed, free = size + _SPARE_BYTES, shutil.disk_usage(self.folder).free
        if needed > free:
            raise CheckpointError(
                f"{self.folder} is full: {path.name} needs {needed / 1e6:,.1f} MB and "
                f"{free / 1e6:,.1f} MB are free"
            )

    def _keep_others(self, target: Path) -> None:
        """Gives another name to what lies at `target` and is not a copy of this run."""
        if not target.exists() and not target.is_symlink():
            return
        found = [state for state in list_states(target.parent) if state.path == target]
        if found and found[0].run == self._run and not target.is_symlink():
            return
        target.rename(kept_path(target))


def clear_copies(folder: Path) -> None:
    """Removes the copies that a place's record names, and the record. Raises OSError."""
    written = _written_by(folder, run_of_copies(folder))
    for state in list_states(folder):
        if _is_in(written, state):
            remove(state.path)
    (folder / COPIES_FILE).unlink(missing_ok=True)


def _written_by(folder: Path, run: str | None) -> dict[str, Any]:
    """Returns the record of what a run has written into a place, {} when there is none."""
    try:
        content = json.loads((folder / COPIES_FILE).read_bytes())
        written = content["written"] if content["run"] == run else {}
        return {name: asdict(WrittenFile(**values)) for name, values in written.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        # Then nothing there is known to be ours, and all of it stays.
        return {}


def _is_in(written: dict[str, Any], state: StateFile) -> bool:
    known = written.get(state.path.name)
    return state.position is not None and known is not None and known["digest"] == state.digest


def size_of_state(path: Path) -> int:
    """Returns the bytes of a file, or of those in a folder. Raises OSError."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _signature_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
