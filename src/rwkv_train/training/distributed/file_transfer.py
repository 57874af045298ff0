"""Files of one rank, sent to machines that do not share its folder, and removed there after use.

They travel through the store in chunks, so that it needs no other connection than the ranks have,
and no process more memory than for two chunks.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from torch.distributed.distributed_c10d import Store

from rwkv_train.errors import CheckpointError
from rwkv_train.training.distributed.rank_store import RankStore
from rwkv_train.training.distributed.ranks import Ranks

# torch's store takes no message of 8 MiB.
CHUNK_BYTES = 4 << 20


class SentFile(NamedTuple):
    """A file on its way: its name in the folder that it is received in, its place on the rank that
    sends it, and its size in bytes."""

    name: str
    source: str
    size: int


class ReceivedFiles:
    """A folder of this machine for what is received, made when it is asked for, until `remove`."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def __enter__(self) -> ReceivedFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def folder_for(self, files: Sequence[SentFile]) -> Path:
        """Returns the folder; raises CheckpointError when there is no room for these files."""
        place = Path(tempfile.gettempdir())
        size = sum(file.size for file in files)
        free = shutil.disk_usage(place).free
        if size > free:
            raise CheckpointError(
                f"{place} has {free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are sent; set "
                "TMPDIR to a folder with more room, or share --proj_dir"
            )
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rwkv-train-"))
        return self._folder

    def remove(self) -> None:
        """Removes what was received; what is mapped into memory stays readable."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def receive_missing(
    ranks: Ranks,
    received: ReceivedFiles,
    files: Sequence[SentFile],
    lacks: bool,
    what: str,
    source: int = 0,
) -> Path | None:
    """Returns the folder with another rank's files on one that lacks them, else None. Collective.

    Each machine receives them once. what: words for the line that says so. source: the rank that
    sends its files.
    """
    launch, store = ranks.launch, ranks.store
    answers = store.gather("lacks", launch.node_rank if lacks else None)
    if all(machine is None for machine in answers):
        return None
    # The first of each machine receives for all of them.
    receivers = {machine: rank for rank, machine in reversed([*enumerate(answers)])}
    receivers.pop(None, None)
    if launch.rank == 0:
        _announce(receivers, launch.num_nodes, files, what, source)
    is_receiver = launch.rank in receivers.values()
    folder = received.folder_for(files) if is_receiver else None
    for file in files:
        share_file(store, ranks.connection("files"), file, folder, source)
    folders = store.gather("received", None if folder is None else str(folder))
    return Path(folders[receivers[launch.node_rank]]) if lacks else None


def _announce(
    receivers: Mapping[int, int], num_nodes: int, files: Sequence[SentFile], what: str, source: int
) -> None:
    size = sum(file.size for file in files)
    told = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    for machine, rank in sorted(receivers.items()):
        who = f"machine {machine}" if num_nodes > 1 else f"rank {rank}"
        print(f"{who} has {what} ({told}) from rank {source}", flush=True)


def share_file(
    ranks: RankStore, store: Store, file: SentFile, folder: Path | None, source: int = 0
) -> None:
    """Sends a file of one rank's to the ranks that give a folder for it. Collective.

    store: for chunks alone. source: the rank that has it. Raises CheckpointError where it cannot
    be read, written, or is not what was sent, and RemoteRankError on the other ranks.
    """
    sends = ranks.rank == source
    target = None if folder is None else folder / file.name
    path = Path(file.source) if sends else target
    digest = hashlib.sha256()
    try:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext() if path is None else path.open("rb" if sends else "xb") as stream:
            for number in range(-(-file.size // CHUNK_BYTES)):
                key = f"chunk/{number}"
                if sends and stream is not None:
                    chunk = stream.read(CHUNK_BYTES)
                    store.set(key, chunk)  # type: ignore[arg-type]  # it takes bytes too
                # Once all are here the chunk is there, and the one before has been read by all.
                ranks.gather("chunk", None)
                if sends:
                    _forget(store, number - 1)
                elif stream is not None:
                    chunk = store.get(key)
                    stream.write(chunk)
                if stream is not None:
                    digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"cannot copy {path}: {error.strerror}") from error
    sent = ranks.gather("sent", digest.hexdigest())[source]
    if sends:
        _forget(store, -(-file.size // CHUNK_BYTES) - 1)
    if target is not None and digest.hexdigest() != sent:
        raise CheckpointError(
            f"{file.source} of rank {source} arrived damaged in {target}; start again"
        )


def _forget(store: Store, number: int) -> None:
    # A store that cannot is one of a test or another library's, and loses nothing but memory.
    with suppress(RuntimeError):
        store.delete_key(f"chunk/{number}")
