"""Ranks that see the same state verify it together, each its share of the parts.

Every rank looks for the newest state that is good, in its own list of states, which may be another
one than that of the next machine: the ranks take turns, in each of which every one says which state
it wants verified, or that it wants none any more. Those that named the same one share it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace
from pathlib import Path
from types import TracebackType

from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.state_folder import verify_parts
from rwkv_train.checkpoint.state_manifest import StateManifest, reading_threads
from rwkv_train.errors import CheckpointError, TrainerError
from rwkv_train.training.distributed.rank_store import RemoteRankError
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.start.file_systems import file_system

# All machines see what one of them has written there, under the same numbers.
_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "wekafs", "fuse.juicefs")


class JointVerification:
    """Verifies parts for `load_state`, in a `with` block that all ranks enter.

    At its end a rank waits until no other wants its help.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._threads = reading_threads(ranks.launch.local_size)

    def __enter__(self) -> JointVerification:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Faults of the program end all ranks, and so do those of another one.
        is_own = isinstance(error, TrainerError) and not isinstance(error, RemoteRankError)
        if kind is None or is_own:
            while any(self._turn(None, None)):
                pass

    def __call__(self, folder: Path, manifest: StateManifest) -> None:
        """Verifies a state in a folder; raises CheckpointError when any rank finds a fault."""
        self._turn(folder, manifest)

    def _turn(self, folder: Path | None, manifest: StateManifest | None) -> list[str | None]:
        """Returns what every rank wanted verified, once it is. Collective."""
        rank, store = self._ranks.launch.rank, self._ranks.store
        own = None
        if folder is not None and manifest is not None:
            own = _identity(folder, manifest, self._ranks.launch.node_rank)
        wanted: list[str | None] = store.gather("verify", own)
        fault = None
        helpers = [other for other, name in enumerate(wanted) if name == own]
        if folder is not None and manifest is not None:
            names = share_of_parts(manifest, helpers.index(rank), len(helpers))
            try:
                verify_parts(folder, manifest, names, self._threads)
            except CheckpointError as error:
                fault = str(error)
        if any(wanted):
            faults = store.gather("verified", fault)
            # A rank that wants nothing has not looked.
            found = [other for other in helpers if own is not None and faults[other] is not None]
            if found:
                by = "" if rank in found else f" (as rank {found[0]} found)"
                raise CheckpointError(f"{fault or faults[found[0]]}{by}")
        return wanted


def share_of_parts(manifest: StateManifest, place: int, count: int) -> Sequence[str]:
    """Returns the parts that one of so many verifies, by its place among them, 0 first.

    As many bytes for each as whole parts allow; the small list of what is in the parts, for all.
    """
    own = [PART_LIST] if PART_LIST in manifest.parts else []
    # Bytes so far, and whose. The largest first, each to whom has least.
    loads = [(0, other) for other in range(count)]
    for name, part in sorted(manifest.parts.items(), key=lambda item: -item[1].size):
        if name == PART_LIST:
            continue
        load, least = loads[0]
        heapreplace(loads, (load + part.size, least))
        if least == place:
            own.append(name)
    return own


def _identity(folder: Path, manifest: StateManifest, machine: int) -> str:
    """Returns what is the same for ranks that read the same bytes of the same disk, not copies."""
    try:
        found = folder.stat()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    kind = file_system(folder)
    disk = f"every machine's {kind}" if kind in _SHARED else f"machine {machine}'s {found.st_dev}"
    return f"{disk} {found.st_ino} {found.st_ctime_ns} {manifest.digest}"
