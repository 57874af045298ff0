"""A training state on its way to another machine: its files in chunks, and back into files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from rwkv_train.checkpoint.names import MANIFEST
from rwkv_train.checkpoint.resume import load_state, state_digest
from rwkv_train.checkpoint.state_manifest import read_state_manifest, require_parts
from rwkv_train.errors import CheckpointError
from rwkv_train.files import new_partial_folder, publish, remove, replacing

# The name of the only file of a state that is no folder.
ALONE = ""


class StateChunks:
    """A state that is read once, from the first byte to the last, while its name may go.

    sizes: bytes by file, the manifest last. Raises CheckpointError and OSError.
    """

    def __init__(self, path: Path, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._opened = ExitStack()
        names = [ALONE]
        if path.is_dir():
            names = [*read_state_manifest(path).parts, MANIFEST]
        try:
            self._files = [self._opened.enter_context((path / name).open("rb")) for name in names]
            self.sizes = {n: file.seek(0, 2) for n, file in zip(names, self._files)}
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        for file in self._files:
            file.seek(0)
            while chunk := file.read(self._chunk_bytes):
                yield chunk

    def close(self) -> None:
        """Closes the files."""
        self._opened.close()


def write_streamed(
    target: Path, sizes: Mapping[str, int], chunks: Iterator[bytes], digest: str
) -> None:
    """Writes a state of these files; it must be whole and have this digest before it has its name.

    chunks: of one file after the other, none in two files. Raises CheckpointError and OSError;
    what was at `target` before is then unchanged.
    """
    if any(Path(name).name != name for name in sizes):
        raise CheckpointError(f"{target.name} would have files outside its folder")
    if [*sizes] == [ALONE]:
        with replacing(target, over_folder=True) as partial:
            _fill(partial, sizes[ALONE], chunks)
            _require(partial, target, digest)
        return
    partial = new_partial_folder(target)
    try:
        for name, size in sizes.items():
            _fill(partial / name, size, chunks)
        _require(partial, target, digest)
        publish(partial, target)
    finally:
        remove(partial)


def _fill(path: Path, size: int, chunks: Iterator[bytes]) -> None:
    with path.open("xb") as file:
        while file.tell() < size:
            file.write(next(chunks))


def _require(partial: Path, target: Path, digest: str) -> None:
    try:
        if partial.is_dir():
            require_parts(partial, read_state_manifest(partial))
        else:
            load_state(partial)
        found = state_digest(partial)
    except CheckpointError as error:
        raise CheckpointError(f"{target.name} arrived damaged: {error.in_one_line()}") from error
    if found != digest:
        raise CheckpointError(f"{target.name} is another state than was announced")
