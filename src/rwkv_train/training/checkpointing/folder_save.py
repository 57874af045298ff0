"""One save of a training state in a folder, on one of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.checkpoint.finite import is_finite
from rwkv_train.checkpoint.memory_shortage import write_fault
from rwkv_train.checkpoint.space import require_space
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.checkpoint.state_parts import TensorRun, entry_name, part_name, write_part
from rwkv_train.errors import CheckpointError
from rwkv_train.files import remove
from rwkv_train.training.checkpointing.part_board import PartBoard, PartOutcome
from rwkv_train.training.checkpointing.save_job import NotFiniteError, failed_for_good


class SavePlace(NamedTuple):
    """A save: its number in this start of the run, the same on all ranks; the path of what is
    saved; the folder of the parts until it is complete."""

    number: int
    path: Path
    folder: Path


class FolderSave:
    """Writes this rank's part into a folder; the first rank then completes the save.

    place: where. pieces, plain: what this rank writes, see `write_part`.
    complete: on the first rank, called with the parts of all ranks, by rank.
    """

    def __init__(
        self,
        board: PartBoard,
        rank: int,
        place: SavePlace,
        pieces: Sequence[TensorRun],
        plain: Mapping[str, Any] | None = None,
        complete: Callable[[Sequence[PartFile]], None] | None = None,
    ) -> None:
        self._board = board
        self._rank = rank
        self._place = place
        self._pieces: Iterable[TensorRun] = pieces
        self._plain = plain
        self._complete = complete
        self._outcome: PartOutcome | None = None
        self._is_told = False

    def write(self) -> None:
        """Does what is left to do of the save; called again after a failure.

        Raises NotFiniteError or CheckpointError, and TrainingError when another rank has failed.
        """
        if self._outcome is None:
            self._outcome = self._write_part()
            # The copies are on the disk: training may have their memory.
            self._pieces, self._plain = (), None
        if not self._is_told:
            self._board.post(self._place.number, self._outcome)
            self._is_told = True
        if self._complete is not None:
            outcomes = self._board.wait_for_all(self._place.number)
            _require_all(self._place.folder, outcomes)
            self._complete([outcome.part for outcome in outcomes])
            self._board.forget(self._place.number)

    def give_up(self, fault: Exception) -> None:
        """Tells the first rank that this one fails, or on the first rank removes what is there."""
        self._pieces, self._plain = (), None
        # Of a store that is gone with the first rank; of a rank that is lost. What is left then is
        # removed by the next start.
        with suppress(RuntimeError, CheckpointError, OSError):
            if not self._is_told:
                is_refused = isinstance(fault, NotFiniteError)
                self._board.post(
                    self._place.number, PartOutcome(fault=str(fault), is_refused=is_refused)
                )
            if self._complete is not None:
                # Nothing is removed under a rank that still writes.
                self._board.wait_for_all(self._place.number)
                self._board.forget(self._place.number)
                remove(self._place.folder)

    def _write_part(self) -> PartOutcome:
        for piece in self._pieces:
            if not is_finite(piece.values):
                raise NotFiniteError(
                    f"{self._place.path} was not written: {entry_name(piece.path)} holds NaN or "
                    "infinity; the files saved before are good"
                )
        part = self._place.folder / part_name(self._rank)
        try:
            self._place.folder.mkdir(exist_ok=True)
            require_space(part, [piece.values for piece in self._pieces])
            try:
                found = write_part(self._place.folder, self._rank, self._pieces, self._plain)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except (OSError, RuntimeError) as error:
            raise write_fault(part, error) from error
        return PartOutcome(found.size, found.sha256)


def _require_all(folder: Path, outcomes: Sequence[PartOutcome]) -> None:
    """Raises the fault of the first rank that has one, or whose part is not in this folder."""
    for rank, outcome in enumerate(outcomes):
        if outcome.is_refused:
            raise NotFiniteError(outcome.fault)
        if outcome.fault:
            # It has tried often enough.
            raise failed_for_good(f"rank {rank}: {outcome.fault}")
        part = folder / part_name(rank)
        if not part.is_file() or part.stat().st_size != outcome.size:
            raise CheckpointError(
                f"rank {rank} has written its part, and {part} is not there: every machine must "
                "see the same --proj_dir; without such a folder take --state_format file"
            )
