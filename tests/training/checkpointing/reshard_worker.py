"""One of four processes that save a toy under every layout, and load every save under every layout.

    python -m tests.training.checkpointing.reshard_worker FOLDER RANK PORT

A layout is a number of ranks and a ZeRO stage, 0 for ddp, where every rank has all. A rank that is
not of a layout waits at the next one that it is of. Prints a line for whatever differs.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore

from rwkv_train.checkpoint.resume import load_state
from rwkv_train.training.checkpointing.folder_save import FolderSave, SavePlace
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.distributed.rank_store import RankStore
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.own_pieces import capture_pieces
from tests.checkpoint.small_states import publish_parts

# After which a rank that waits for another one gives up.
PATIENCE = timedelta(seconds=60)
LAYOUTS = [*itertools.product((1, 2, 3, 4), (0, 1, 2, 3))]


class Toy(nn.Module):
    """Shapes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(5)
        for name, shape in (("table", (7, 6)), ("cube", (2, 3, 5)), ("scale", (3,))):
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=numbers)))

    def forward(self) -> Tensor:
        return sum((3 * p.float()).sin().sum() for p in (self.table, self.cube, self.scale))


class Trained(NamedTuple):
    """A toy, its optimizer and its engine, None without DeepSpeed."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: Any | None


def engine_of(stage: int, model: Toy, optimizer: torch.optim.Optimizer) -> Any:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
    }
    with contextlib.redirect_stdout(io.StringIO()):
        # Counted over the life of a process, and compared between those that have had other lives.
        deepspeed.zero.Init.param_id = 0
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


@contextmanager
def group_of(ranks: int, rank: int, store: Any) -> Iterator[None]:
    """One process group for all layouts of so many ranks."""
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=PATIENCE
    )
    yield
    # By DeepSpeed, which has groups of its own in it.
    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


@contextmanager
def trained(stage: int) -> Iterator[Trained]:
    """A toy after two steps, each of them with a decay of its own for the table."""
    model = Toy()
    groups = [
        {"params": [model.table], "weight_decay": 0.1},
        {"params": [model.cube, model.scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    engine = engine_of(stage, model, optimizer) if stage else None
    for _ in range(2):
        if engine is None:
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        else:
            engine.backward(engine())
            engine.step()
    yield Trained(model, optimizer, engine)
    if engine is not None:
        engine.destroy()


def gathered(toy: Trained) -> dict[str, Any]:
    """All of it, gathered as for a single file."""
    return optimizer_state.capture(*toy, copies=HostCopies(keeps=True))


def save(toy: Trained, ranks: int, rank: int, path: Path, board: PartBoard) -> None:
    captured = capture_pieces(*toy, copies=HostCopies(keeps=True), rank=rank, ranks=ranks)
    folder = path.with_suffix(".partial")
    plain = {"step": 2, "optimizer": "adamw", "optimizer_steps": captured["optimizer_steps"]}
    place = SavePlace(1, path, folder)
    if rank:
        FolderSave(board, rank, place, captured["pieces"]).write()
        return

    def complete(parts: Any) -> None:
        publish_parts(path, folder, parts, {"format": 3, **plain})

    FolderSave(board, rank, place, captured["pieces"], {"format": 3, **plain}, complete).write()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what is not the same bit for bit."""
    different = [] if found["optimizer_steps"] == expected["optimizer_steps"] == 2 else ["steps"]
    for key in ("weights", *(("moments", key) for key in ("exp_avg", "exp_avg_sq"))):
        a, b = (s[key] if key == "weights" else s[key[0]][key[1]] for s in (found, expected))
        different += [f"{key} {name}" for name in b if not torch.equal(a[name], b[name])]
        different += [] if a.keys() == b.keys() else [f"names in {key}"]
    return different


def layouts_of(rank: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The layouts that a rank is of, by the number of ranks."""
    for ranks, layouts in itertools.groupby(LAYOUTS, lambda layout: layout[0]):
        if rank < ranks:
            yield ranks, list(layouts)


def save_all(folder: Path, rank: int, store: Any) -> None:
    """Saves under every layout, and beside it what is in it."""
    for ranks, layouts in layouts_of(rank):
        with group_of(ranks, rank, PrefixStore(f"s{ranks}", store)):
            for _, stage in layouts:
                name = f"{ranks}-{stage}"
                path = folder / f"rwkv-step-{ranks}{stage}.state"
                own, shared = RankStore(), None
                if ranks > 1:
                    place = PrefixStore(f"r{name}", store)
                    own = RankStore(place, rank=rank, world_size=ranks)
                    shared = PrefixStore(f"b{name}", store)
                with trained(stage) as toy:
                    save(toy, ranks, rank, path, PartBoard(shared, own))
                    expected = gathered(toy)
                if rank == 0:
                    torch.save(expected, folder / f"{name}.truth")


def load_all(folder: Path, rank: int, store: Any) -> int:
    """Loads every save under every layout; returns the number of differences."""
    count = 0
    truths, states = {}, {}
    for source in LAYOUTS:
        truths[source] = torch.load(folder / "{}-{}.truth".format(*source))
        states[source] = load_state(folder / "rwkv-step-{}{}.state".format(*source))
    for ranks, layouts in layouts_of(rank):
        with group_of(ranks, rank, PrefixStore(f"l{ranks}", store)):
            for _, stage in layouts:
                with trained(stage) as toy:
                    for source, state in states.items():
                        optimizer_state.restore(state, *toy)
                        for fault in differences(gathered(toy), truths[source]):
                            count += 1
                            print(f"{source} -> {ranks, stage}, rank {rank}: {fault}")
    return count


def main(folder: Path, rank: int, port: int) -> int:
    """Returns the number of differences."""
    store = TCPStore("127.0.0.1", port, 4, rank == 0, timeout=PATIENCE)
    save_all(folder, rank, store)
    store.set(f"saved{rank}", "")
    store.wait([f"saved{other}" for other in range(4)])
    count = load_all(folder, rank, store)
    store.set(f"left{rank}", "")
    if rank == 0:
        store.wait([f"left{other}" for other in range(4)])
    return count


if __name__ == "__main__":
    os.environ.update({"LOCAL_RANK": "0", "RANK": sys.argv[2]})
    sys.exit(bool(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
