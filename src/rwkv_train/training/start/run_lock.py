"""One run per project folder: `run.lock` names the run that works there and shows that it lives.

The owner is a random id. It touches the file every few seconds, so that its age by the clock of the
file server tells a run that is alive from one that is dead, whatever host, container or clock looks
at it. The file is locked by the operating system too, which says so at once where locks reach. Who
takes over puts a new file in its place: the run before finds that the name is no longer its own,
and stops before it gives another checkpoint its name.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from socket import gethostname
from types import TracebackType
from typing import NamedTuple

from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.files import guard, partial_path, restore_replaced, unguard
from rwkv_train.training.start.lock_file import (
    FolderInUseError,
    UnwritableFolderError,
    link_once,
    require_plain,
)
from rwkv_train.training.start.lock_owner import Owner, boot_id, is_alive, read_owner

if sys.platform != "win32":
    import fcntl

LOCK_FILE = "run.lock"
# Seconds between the signs of life of a run, and the silence after which it counts as dead.
HEARTBEAT = 10.0
STALE = 120.0
# Seconds between two looks at a silent run, and after taking over, for others that do the same.
LOOK = 1.0
SETTLE = 1.0


class _Sight(NamedTuple):
    """One look at a lock: which file, its last sign of life (ns), and when we looked (seconds)."""

    file: int
    touched: int
    at: float


class RunLock:
    """Holds a folder between `acquire` and the end of its `with` block.

    enabled: False in the processes other than the run's first, for which it does nothing.
    patience: seconds to wait for the end of a run that lives: where a launcher starts a run anew
    without a machine that it has lost, what is cut off there still has to notice.
    """

    def __init__(self, folder: Path, *, enabled: bool = True, patience: float = 0.0) -> None:
        self._patience = patience
        self._path = folder / LOCK_FILE
        self._enabled = enabled
        self._descriptor: int | None = None
        self._first_sight: _Sight | None = None
        self._fault: TrainingError | None = None
        self._left_at: float | None = None
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

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

        Waits for a sign of life of a run that cannot be asked; says so, and when it takes over.
        Raises ConfigError when another run has the folder.
        """
        if not self._enabled or self._descriptor is not None:
            return
        own = Owner.of_this_process(datetime.now().isoformat(" ", timespec="seconds"))
        partial = partial_path(self._path)
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                # On a full disk the name is missing, but the folder is taken all the same.
                with suppress(OSError):
                    os.pwrite(descriptor, own.to_json(), 0)
                _lock(descriptor)
                self._put_in_place(partial, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise UnwritableFolderError(
                f"--proj_dir {self._path.parent} cannot be written ({error.strerror}); choose a "
                "folder of your own"
            ) from error
        self._descriptor = descriptor
        restore_replaced(self._path.parent)
        guard(self._path.parent, self.require_owned)
        self._heart = threading.Thread(target=self._beat, name="run.lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Gives the folder back."""
        if self._descriptor is None:
            return
        assert self._heart is not None, "a lock that is held has a heartbeat"
        self._ended.set()
        self._heart.join()
        unguard(self._path.parent)
        # Removed before it is unlocked: whoever opened it in between sees that it is gone.
        with suppress(OSError):
            if self._is_owned():
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def require_owned(self) -> None:
        """Raises TrainingError when the folder is no longer this run's."""
        if not self._is_owned():
            raise TrainingError(
                f"{self._path} is no longer this run's: another run has taken over "
                f"{self._path.parent} after {STALE:g} s without a sign of life of this one, or the "
                "file was removed; nothing more is written there"
            )

    @property
    def left_at(self) -> float | None:
        """The last sign of life of a run that was taken over, in seconds since the epoch.

        By the clock of whoever keeps the file; None: the run before gave the folder back.
        """
        return self._left_at

    def fault(self) -> TrainingError | None:
        """Tells why the run has to stop; None: at the last sign of life the folder was its own."""
        return self._fault

    def _is_owned(self) -> bool:
        """Gives a sign of life and tells whether the lock is this run's; OSError: nobody knows."""
        assert self._descriptor is not None, "a lock that is not held is nobody's"
        try:
            # By the clock of whoever keeps the file; the answer brings its attributes, so that
            # they are fresh on a network too.
            os.utime(self._descriptor)
            own = os.fstat(self._descriptor)
            named = os.lstat(self._path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        # Not by reading it: closing a second descriptor would drop the lock.
        return own.st_nlink > 0 and (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino)

    def _beat(self) -> None:
        """Gives signs of life as long as the lock is this run's."""
        while not self._ended.wait(HEARTBEAT):
            # A server that does not answer now may do so the next time.
            with suppress(OSError):
                try:
                    self.require_owned()
                except TrainingError as error:
                    self._fault = error
                    return

    def _put_in_place(self, partial: Path, descriptor: int) -> None:
        """Gives our file the lock's name, once nobody else has it."""
        began, told = time.monotonic(), False
        while not link_once(partial, self._path):
            try:
                if self._take_over(partial, descriptor):
                    return
            except FolderInUseError as error:
                if time.monotonic() - began >= self._patience:
                    raise
                if not told:
                    print(f"{error}: waiting at most {self._patience:g} s", flush=True)
                told, self._first_sight = True, None
                time.sleep(LOOK)

    def _take_over(self, partial: Path, own: int) -> bool:
        """Takes a dead owner's lock; False: try again, it is gone or its owner may be alive.

        own: the descriptor of our file. Raises ConfigError when the owner lives.
        """
        try:
            require_plain(self._path)
            # Not waiting: what was a file may be a pipe by now.
            flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(self._path, flags)
        except FileNotFoundError:
            return False
        try:
            locked = _lock(descriptor)
            found = os.fstat(descriptor)
            owner = read_owner(os.pread(descriptor, 4096, 0)) or Owner()
            if locked is not False and found.st_nlink == 0:
                return False
            if not self._is_dead(owner, locked, found, own):
                return False
            print(
                f"taking over {self._path.parent} from {owner}, which ended without giving it back",
                flush=True,
            )
            # While the old file is locked, so that no other run of this machine does the same.
            partial.replace(self._path)
            self._left_at = found.st_mtime
        finally:
            os.close(descriptor)
        if owner.boot != boot_id():
            # Where locks do not reach, two may take over at once; the later rename stays.
            time.sleep(SETTLE)
        if os.fstat(own).st_ino != os.lstat(self._path).st_ino:
            raise ConfigError(
                f"another run has just taken {self._path.parent} over; wait for its end, or "
                "choose another --proj_dir"
            )
        return True

    def _is_dead(self, owner: Owner, locked: bool | None, found: os.stat_result, own: int) -> bool:
        """Tells whether an owner is dead; False after a pause when that is not known yet."""
        folder = self._path.parent
        if locked is False:
            raise FolderInUseError(
                f"another run works in {folder}: {owner}; wait for its end, stop it, or choose "
                "another --proj_dir"
            )
        same_machine = owner.boot == boot_id() != ""
        if locked and (same_machine or not owner.process):
            # The lock reached its machine, or its writer was killed before it wrote a word.
            return True
        if same_machine and owner.in_this_container() and not is_alive(owner.process):
            return True
        if not owner.id and owner.process:
            self._require_known(owner, locked)
            return True
        os.utime(own)
        sight = _Sight(found.st_ino, found.st_mtime_ns, time.monotonic())
        if self._first_sight is None:
            self._first_sight = sight
            print(
                f"{self._path} names {owner}, which cannot be asked from here: waiting for a sign "
                f"of life, at most {STALE:g} s",
                flush=True,
            )
        first = self._first_sight
        if (first.file, first.touched) != (sight.file, sight.touched):
            raise FolderInUseError(
                f"another run works in {folder}: {owner}, which has just shown that it lives; wait "
                "for its end, stop it, or choose another --proj_dir"
            )
        watched, age = sight.at - first.at, (os.fstat(own).st_mtime_ns - sight.touched) / 1e9
        # A clock may jump: even an old file must stay silent while we look.
        if watched >= STALE or (age >= STALE and watched >= 1.5 * HEARTBEAT):
            return True
        time.sleep(min(LOOK, HEARTBEAT / 4))
        return False

    def _require_known(self, owner: Owner, locked: bool | None) -> None:
        """Raises ConfigError for what an older version left, which shows no signs of life."""
        if owner.host != gethostname():
            raise ConfigError(
                f"another run works in {self._path.parent}: {owner}, which cannot be asked from "
                f"{gethostname()}; if it has ended, remove {self._path} and start again"
            )
        if locked is None and is_alive(owner.process):
            raise ConfigError(
                f"another run works in {self._path.parent}: {owner}; wait for its end, stop it, or "
                f"choose another --proj_dir. If that process is no training run, remove "
                f"{self._path}"
            )


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
