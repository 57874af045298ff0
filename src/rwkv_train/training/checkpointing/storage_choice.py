"""Decides whether the states of a run are single files or folders of every rank's part."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.checkpointing.part_publisher import PartPublisher
from rwkv_train.training.checkpointing.sharded_states import ShardedStates
from rwkv_train.training.checkpointing.state_writer import StateWriter
from rwkv_train.training.checkpointing.whole_states import WholeStates
from rwkv_train.training.distributed.ranks import Ranks


class StorageChoice(NamedTuple):
    """The decision. token: part of the names of unfinished folders, None for single files."""

    token: str | None = None
    notes: tuple[str, ...] = ()


def choose_storage(config: ResolvedConfig, ranks: Ranks) -> StorageChoice:
    """Returns how the states of a run are stored. Collective.

    By default in folders where several processes train a whole model and see one project folder.
    Raises ConfigError when folders are asked for and the processes see several.
    """
    given, several = config.safety.state_format, ranks.launch.world_size > 1
    # What adapters and states take is little, and the frozen base model has a file of its own.
    suits = several and config.train.train_type == "all"
    if given == "file" or (given == "auto" and not suits):
        return StorageChoice()
    token = secrets.token_hex(4)
    if not several:
        return StorageChoice(token)
    folder = Path(config.train.proj_dir)
    probe = folder / f"states.{token}.partial"
    if ranks.launch.rank == 0:
        # A disk that takes nothing is told of by the first save.
        with suppress(OSError):
            probe.touch()
    token = ranks.store.gather("states", token)[0]
    seen = ranks.store.gather("seen", (folder / f"states.{token}.partial").exists())
    if ranks.launch.rank == 0:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    if all(seen):
        return StorageChoice(token)
    told = f"rank {seen.index(False)} does not see the --proj_dir of rank 0"
    if given == "folder":
        raise ConfigError(
            f"--state_format folder: {told}, and the parts of a state belong into one folder; give "
            "all machines the same --proj_dir on a shared disk, or take --state_format file"
        )
    return StorageChoice(notes=(f"training states are single files: {told}",))


def make_storage(
    choice: StorageChoice, ranks: Ranks, writer: StateWriter | None, frozen: Mapping[str, Tensor]
) -> WholeStates | ShardedStates:
    """Returns what stores the states of a run as decided.

    writer: on the first rank. frozen: values of the parameters that do not learn, by name.
    """
    if choice.token is None:
        return WholeStates(writer, frozen)
    store = ranks.connection("parts") if ranks.launch.world_size > 1 else None
    board = PartBoard(store, ranks.own_rank_store())
    publisher = None if writer is None else PartPublisher(writer, frozen)
    return ShardedStates(publisher, board, choice.token)
