"""Stores what a run saves in folders, into which every rank writes its own part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from rwkv_train.checkpoint.resume import state_path
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.checkpoint.state_parts import TensorRun
from rwkv_train.training.checkpointing.folder_save import FolderSave, SavePlace
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.checkpointing.part_publisher import PartPublisher
from rwkv_train.training.checkpointing.save_job import SaveSteps
from rwkv_train.training.distributed.strategy import zero_engine
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.own_pieces import capture_pieces, prepare_copies, whole_pieces


class ShardedStates:
    """Copies this rank's share, and writes it beside training.

    publisher: completes what all ranks have written; None but on the first. board: where they tell
    that. token: part of the names of unfinished folders, the same on all ranks and at no other
    start.
    """

    def __init__(self, publisher: PartPublisher | None, board: PartBoard, token: str) -> None:
        self._publisher = publisher
        self._board = board
        self._token = token
        self._copies = HostCopies(keeps=True)
        self._saves = 0

    def prepare(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Takes the memory of the copies, beside training."""
        prepare_copies(
            module.model,
            trainer.optimizers[0],
            zero_engine(trainer.strategy),
            copies=self._copies,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
        )

    def capture(
        self, trainer: pl.Trainer, module: TrainingModule, *, moments: bool
    ) -> dict[str, Any]:
        """Returns copies on the CPU of what is this rank's, of weights alone without moments."""
        captured = capture_pieces(
            module.model,
            trainer.optimizers[0],
            zero_engine(trainer.strategy),
            copies=self._copies,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            moments=moments,
        )
        if self._publisher is not None:
            # Checkpoints keep the order of the state dict, by which some loaders tell the version.
            self._publisher.order = [*module.model.state_dict()]
            captured["pieces"] += whole_pieces(self._publisher.kept_frozen())
        return {**captured, "rank": trainer.global_rank}

    def saving(self, path: Path, captured: dict[str, Any]) -> SaveSteps:
        """Returns the calls that write this rank's part; the first rank's complete the state.

        path: of the weights next to it, or of the state itself.
        """
        place, publisher = self._next(state_path(path)), self._publisher
        rank, pieces = captured.pop("rank"), captured.pop("pieces")
        if publisher is None:
            return self._steps(place, rank, pieces)
        plain = publisher.plain_values(captured)

        def complete(parts: Sequence[PartFile]) -> None:
            publisher.publish(path, place.folder, parts, plain)

        return self._steps(place, rank, pieces, plain, complete)

    def saving_weights(
        self, path: Path, captured: dict[str, Any], about: Mapping[str, Any]
    ) -> SaveSteps:
        """Returns the calls that write weights alone, whose parts are removed again."""
        place, publisher = self._next(path), self._publisher
        rank, pieces = captured.pop("rank"), captured.pop("pieces")
        if publisher is None:
            return self._steps(place, rank, pieces)

        def complete(parts: Sequence[PartFile]) -> None:
            publisher.publish_weights(path, place.folder, parts, about)

        return self._steps(place, rank, pieces, {}, complete)

    def _next(self, path: Path) -> SavePlace:
        self._saves += 1
        folder = path.with_name(f"{path.name}.{self._token}-{self._saves}.partial")
        return SavePlace(self._saves, path, folder)

    def _steps(
        self,
        place: SavePlace,
        rank: int,
        pieces: Sequence[TensorRun],
        plain: Mapping[str, Any] | None = None,
        complete: Callable[[Sequence[PartFile]], None] | None = None,
    ) -> SaveSteps:
        save = FolderSave(self._board, rank, place, pieces, plain, complete)
        return SaveSteps(save.write, save.give_up)
