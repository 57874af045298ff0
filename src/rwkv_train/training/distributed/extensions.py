"""DeepSpeed's own compiled parts: what a run needs of them, and locks that killed builds have left.

torch guards the build of an extension by a file named `lock`, which every later run waits for
without a word. Its owner keeps it open, so that a lock whose owner has died can be told from one
that is held.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.utils import cpp_extension

from rwkv_train.compiler import find_ninja
from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.errors import BackendError
from rwkv_train.training import environment

PROCESSES = Path("/proc")
MOUNTS = PROCESSES / "self" / "mountinfo"
# File systems of several machines: the owner of a lock may be on another one.
SHARED_KINDS = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "fuse")
# Longer than any file of DeepSpeed takes to compile.
QUIET_S = 600.0
POLL_S = 0.5


def needed_extensions(hardware: ResolvedHardware) -> tuple[str, ...]:
    """Returns the names of DeepSpeed's extensions that a run loads."""
    if not hardware.strategy.startswith("deepspeed"):
        return ()
    if hardware.accelerator == "cpu":
        # Its collectives on one machine; elsewhere it does without.
        return ("deepspeed_shm_comm",) if sys.platform == "linux" else ()
    return ("cpu_adam",) if "offload" in hardware.strategy else ()


def check_extensions(hardware: ResolvedHardware) -> None:
    """Raises BackendError when an extension has to be compiled and cannot be, or not be loaded."""
    for name in needed_extensions(hardware):
        _check_folder(extension_folder(name), hardware.strategy)
    missing = [name for name in needed_extensions(hardware) if not _is_built(name)]
    if not missing:
        return
    needed = f"--strategy {hardware.strategy} compiles DeepSpeed's {', '.join(missing)}"
    try:
        ninja = Path(find_ninja())
    except BackendError as error:
        raise BackendError(f"{needed}: {error}; or use --strategy ddp") from error
    # Where the environment is not active, pip's ninja lies beside Python only, and torch looks on
    # the PATH.
    environment.put_on_path(str(ninja.parent))
    compiler = environment.extension_compiler()
    if shutil.which(compiler) is None:
        raise BackendError(
            f"{needed}: there is no C++ compiler {compiler}; install one, for example with "
            "`apt-get install g++`, or use --strategy ddp"
        )


def prepare_extensions(hardware: ResolvedHardware) -> None:
    """Waits for builds that others have begun, removes what the dead have left, and says so."""
    for name in needed_extensions(hardware):
        folder = extension_folder(name)
        _wait_for_lock(folder / "lock", name)
        if environment.is_local_rank_zero() and not _is_built(name):
            _say(f"compiling DeepSpeed's {name} (about a minute, once per machine)")


def extension_folder(name: str) -> Path:
    """Returns where torch builds an extension; it need not exist."""
    given = environment.extension_root()
    if given is not None:
        return Path(given, name)
    version = torch.version.cuda
    kind = "cpu" if version is None else f"cu{version.replace('.', '')}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"
    return Path(cpp_extension.get_default_build_root(), f"{python}_{kind}", name)


def _check_folder(folder: Path, strategy: str) -> None:
    """Raises BackendError where torch could not lock an extension, which it does to load it too."""
    reason = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror}"
    else:
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = "cannot be written"
        elif (folder / "lock").is_dir():
            reason = "holds a folder where torch makes a file named lock; remove it"
    if reason is not None:
        raise BackendError(
            f"--strategy {strategy} loads a part of DeepSpeed by {folder}, which {reason}; or name "
            "another folder with TORCH_EXTENSIONS_DIR=FOLDER before the command, or use "
            "--strategy ddp"
        )


def _is_built(name: str) -> bool:
    return (extension_folder(name) / f"{name}.so").exists()


def _wait_for_lock(lock: Path, name: str) -> None:
    """Returns once nobody holds the lock; removes it when its owner has died."""
    told = False
    while lock.exists():
        with _alone(lock.parent):
            owner = _owner(lock)
            if owner is None and (_is_private(lock) or _quiet_s(lock.parent) > QUIET_S):
                # Another rank may have done so, and DeepSpeed makes a new one.
                with suppress(FileNotFoundError):
                    lock.unlink()
                    _say(f"a build of DeepSpeed's {name} was killed; its lock {lock} is removed")
                return
        if not told:
            who = "another machine" if owner is None else f"process {owner}"
            _say(f"waiting for {who}, which compiles DeepSpeed's {name} ({lock})")
            told = True
        time.sleep(POLL_S)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds off the other ranks: between a look at the lock and its removal none makes another."""
    # Absent on Windows, where DeepSpeed compiles nothing for us.
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _owner(lock: Path) -> int | None:
    """Returns a process of this machine that has the lock open, None when there is none."""
    name = os.path.realpath(lock)
    for process in PROCESSES.glob("[0-9]*"):
        # Processes end while one looks, and those of others may not be looked at.
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) == name:
                        return int(process.name)
    return None


def _is_private(lock: Path) -> bool:
    """Tells whether all who may hold the lock are processes of this machine that can be seen."""
    try:
        mine = lock.stat().st_uid == os.getuid()
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mounts = [(line.split()[4], line.partition(" - ")[2].split()[0]) for line in lines if line]
    place = Path(os.path.realpath(lock))
    over = [(point, kind) for point, kind in mounts if place.is_relative_to(point)]
    kind = max(over, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return mine and not kind.startswith(SHARED_KINDS)


def _quiet_s(folder: Path) -> float:
    """Returns for how long no file of the build has changed, by the file system's own clock."""
    probe = folder / f"clock.{os.getpid()}"
    with suppress(OSError):
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - max((file.stat().st_mtime for file in folder.iterdir()), default=now)
    return 0.0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
