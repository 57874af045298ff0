"""One run per project folder: `run.lock` names the process that works there.

The file is locked by the operating system too, which frees it however the process ends. So what a
killed run left is told from a run that is alive, on one machine by any file system and between
machines by those that carry locks; where they do not, the file's own words decide.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from rwkv_train.errors import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK_FILE = "run.lock"


@dataclass(frozen=True)
class Owner:
    """The process that works in a folder, and since when (local time, ISO 8601)."""

    process: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class RunLock:
    """Holds a folder between `acquire` and the end of its `with` block.

    wanted: False in the processes other than the run's first, for which it does nothing.
    """

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self._path = folder / LOCK_FILE
        self._enabled = enabled
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        if self._path.parent.is_dir():
            self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the folder, which must exist; nothing if it is held already.

        Says so when it takes over from a process that has died. Raises ConfigError when another
        process has it.
        """
        if not self._enabled or self._descriptor is not None:
            return
        try:
            self._descriptor = self._open_and_lock()
        except OSError as error:
            raise ConfigError(
                f"--proj_dir {self._path.parent} cannot be written ({error.strerror}); choose a "
                "folder of your own"
            ) from error
        own = Owner(
            os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", timespec="seconds")
        )
        # On a full disk the name is missing, but the folder is locked all the same.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(own)).encode() + b"\n", 0)

    def release(self) -> None:
        """Gives the folder back."""
        if self._descriptor is None:
            return
        # Removed before it is unlocked: whoever opened it in between sees that it is gone.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _open_and_lock(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locked = _lock(descriptor)
                # Any other descriptor of the file would drop the lock when it is closed.
                owner = _owner(os.pread(descriptor, 4096, 0))
                if locked is not False and self._is_gone(descriptor):
                    os.close(descriptor)
                    continue
                self._require_free(owner, locked)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    def _is_gone(self, descriptor: int) -> bool:
        """Tells whether the run that had the file removed it after we opened it."""
        try:
            return self._path.stat().st_ino != os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return True

    def _require_free(self, owner: Owner | None, locked: bool | None) -> None:
        folder = self._path.parent
        if locked is False:
            raise ConfigError(
                f"another run works in {folder}: {owner or 'a process that is just starting'}; "
                "wait for its end, stop it, or choose another --proj_dir"
            )
        if owner is None:
            return
        if owner.host != socket.gethostname():
            raise ConfigError(
                f"another run works in {folder}: {owner}, which cannot be asked from "
                f"{socket.gethostname()}; if it has ended, remove {self._path} and start again"
            )
        if locked is None and _is_alive(owner.process):
            raise ConfigError(
                f"another run works in {folder}: {owner}; wait for its end, stop it, or choose "
                f"another --proj_dir. If that process is no training run, remove {self._path}"
            )
        print(f"taking over {folder} from {owner}, which ended without giving it back", flush=True)


def _lock(descriptor: int) -> bool | None:
    """Locks a file; True: it is locked; False: another process has it; None: no locks here."""
    if sys.platform == "win32":
        return None
    try:
        # Not flock: loader workers would inherit that and outlive a killed run for a while.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _owner(content: bytes) -> Owner | None:
    try:
        values = json.loads(content)
        return Owner(int(values["process"]), str(values["host"]), str(values["since"]))
    except (ValueError, KeyError, TypeError):
        # Empty: its writer was killed between making and filling it.
        return None


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        # There, asking would end the process.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
