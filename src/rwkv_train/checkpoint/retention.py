"""Chooses the training states and numbered weights to keep, and deletes the others.

A file is known by its content: the run keeps a record of what it wrote, name and digest, and hands
it on in its training states. What somebody else put into the folder, replaced or protected is
neither counted nor deleted, and so with what is damaged.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import FINAL, MANIFEST, epoch_of, is_state, merged_path
from rwkv_train.checkpoint.resume import list_states, load_state, state_path
from rwkv_train.checkpoint.state_manifest import read_state_manifest
from rwkv_train.errors import CheckpointError
from rwkv_train.files import remove

# Size, time and number of a file, or of a folder and the files in it.
Signature: TypeAlias = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class KeepRule:
    """The files that stay: the newest ones, and those at certain steps.

    last: newest states kept; every: files saved at a multiple of so many steps stay too;
    last_weights: newest numbered weights kept, None: all.
    """

    last: int
    every: int | None = None
    last_weights: int | None = None

    def is_at_multiple(self, step: int) -> bool:
        """Tells whether what was saved after `step` steps stays whatever its age."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class WrittenFile:
    """A file of this run, or a state in a folder.

    digest: of a state its own, of weights that of the file; tokens: trained on before it was
    written, by which files have their order; step: the same in the steps of that time.
    """

    digest: str
    tokens: int
    step: int


class Retention:
    """The files that a run has written into `folder`, and which of them it still needs.

    record: what `record` gave in the training state that the run resumes, and resumed: that state.
    protected: files that stay in any case, such as a frozen base model.
    """

    def __init__(
        self,
        folder: Path,
        rule: KeepRule,
        *,
        record: Mapping[str, Any] | None = None,
        resumed: Path | None = None,
        protected: Collection[Path] = (),
    ) -> None:
        self._folder = folder
        self._rule = rule
        self._written = {name: WrittenFile(**values) for name, values in (record or {}).items()}
        self._protected = {path.resolve() for path in protected}
        # Size, time and number of files whose content was written or read by this process: read
        # again at every save, the kept ones would cost as much as the save itself.
        self._intact: dict[str, Signature] = {}
        # A state cannot hold its own digest in its record.
        for file in [] if resumed is None else list_states(folder):
            if file.path == resumed and file.position is not None:
                self.add(file.path, file.digest, file.position, file.step)

    def add(self, path: Path, digest: str, tokens: int, step: int) -> None:
        """Records a file that this run has just written, or has read and found sound."""
        self._written[path.name] = WrittenFile(digest, tokens, step)
        self._intact[path.name] = _signature(path)

    def record(self) -> dict[str, Any]:
        """Returns plain values for the training state; what is no longer there is left out."""
        return {
            name: asdict(file)
            for name, file in self._written.items()
            if (self._folder / name).exists()
        }

    def apply(self, newest: Path) -> list[Path]:
        """Deletes what is neither among the newest nor at a multiple; returns that.

        newest: the state just written. States that are further in the data than it were skipped
        when the run resumed: they neither count nor go, and so with rwkv-final.state.
        """
        deleted: list[Path] = []
        # A file too many is no reason to call a good save failed.
        with suppress(OSError):
            for path in self._states_to_go(newest) + self._weights_to_go():
                remove(path)
                del self._written[path.name]
                deleted.append(path)
        return deleted

    def _states_to_go(self, newest: Path) -> list[Path]:
        reached = self._written[newest.name].tokens
        names = {newest.name, state_path(self._folder / FINAL).name}
        ours = [
            file
            for file in list_states(self._folder)
            if file.path.name in self._written
            and file.path.name not in names
            and file.position is not None
            and file.position <= reached
            and file.digest == self._written[file.path.name].digest
        ]
        # The state just written is one of the `last`; that of the end does not count.
        places = self._rule.last - (newest != state_path(self._folder / FINAL))
        return self._beyond([file.path for file in ours], places)

    def _weights_to_go(self) -> list[Path]:
        if self._rule.last_weights is None:
            return []
        # By their place in the data: another --epoch_steps turns the numbers back.
        names = sorted(
            (name for name in self._written if epoch_of(name) is not None),
            key=lambda name: self._written[name].tokens,
            reverse=True,
        )
        old = self._beyond([self._folder / name for name in names], self._rule.last_weights)
        # An adapter is small; the model merged with it is in the .pth.
        merged = [merged_path(path) for path in old]
        return old + [path for path in merged if self.is_own(path) and self._may_go(path)]

    def _beyond(self, newest_first: list[Path], count: int) -> list[Path]:
        """Returns those of our sound files behind the first `count` that may go."""
        to_go, kept = [], 0
        for path in newest_first:
            # A damaged file must not take the place of a good one.
            if not self.is_own(path):
                continue
            kept += 1
            if kept > count and self._may_go(path):
                to_go.append(path)
        return to_go

    def _may_go(self, path: Path) -> bool:
        """Tells whether nobody has protected a file of ours."""
        # Files are written with permission to write them again; somebody has taken it away.
        is_writable = all(file.stat().st_mode & stat.S_IWUSR for file in _described(path))
        step = self._written[path.name].step
        return (
            is_writable
            and path.resolve() not in self._protected
            and not self._rule.is_at_multiple(step)
        )

    def is_own(self, path: Path) -> bool:
        """Tells whether `path` still holds, bit for bit, what this run wrote there."""
        file = self._written.get(path.name)
        # Whoever made a link of what is ours has moved it to another disk.
        if file is None or path.is_symlink() or not _is_there(path):
            return False
        signature = _signature(path)
        if self._intact.get(path.name) == signature:
            return True
        try:
            if is_state(path.name):
                load_state(path)
            elif file_digest(path) != file.digest:
                return False
        except (CheckpointError, OSError):
            return False
        self._intact[path.name] = signature
        return True


def _is_there(path: Path) -> bool:
    """Tells whether a file, or a state's folder without files of others, is at `path`."""
    if path.is_file() or not is_state(path.name):
        return path.is_file()
    try:
        ours = {MANIFEST, *read_state_manifest(path).parts}
    except CheckpointError:
        return False
    return {file.name for file in path.iterdir()} == ours


def _described(path: Path) -> list[Path]:
    """Returns a file itself; a folder, and the files in it."""
    return [path, *sorted(path.iterdir())] if path.is_dir() else [path]


def _signature(path: Path) -> Signature:
    found = [file.stat() for file in _described(path)]
    return tuple((file.st_size, file.st_mtime_ns, file.st_ino) for file in found)
