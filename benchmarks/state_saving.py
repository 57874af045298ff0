"""What a save and a start cost with several processes: one file by the first, a folder by all.

    python -m benchmarks.state_saving [--processes 4] [--layers 16] [--width 768] [--folder DIR]

The processes have the weights and moments of one RWKV-7 model in shared memory, as under ddp every
one has all of them, and save them twice each way, with the .pth in bf16; then all of them resume.
Times of the wall and of the processors, memory in anonymous pages, of the rank that takes most.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, multiprocessing
from torch.distributed import PrefixStore, TCPStore

from benchmarks.state_costs import Memcpy, PeakMemory, weights_memory
from rwkv_train.checkpoint.lazy_tensors import outlines_of
from rwkv_train.checkpoint.names import numbered
from rwkv_train.checkpoint.resume import load_state, save_state, state_path
from rwkv_train.checkpoint.state_folder import complete_folder, list_parts, read_parts
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.config.resolve.model_shape import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.files import publish
from rwkv_train.models.registry import build_model
from rwkv_train.training.checkpointing.folder_save import FolderSave, SavePlace
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.checkpointing.weights_apart import write_apart
from rwkv_train.training.distributed.rank_store import RankStore
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.own_pieces import capture_pieces, prepare_copies
from rwkv_train.training.start.joint_verification import JointVerification

# In which a training run makes its first steps.
_PREPARING_SECONDS = 5.0
PLAIN = {"format": 3, "step": 1, "optimizer": "adamw", "optimizer_steps": 1}


class Cost(NamedTuple):
    """What a rank measured of a save: seconds of its pause, of the processor in it and in one
    memcpy of the same bytes, and of what follows; bytes of its share."""

    pause: float
    busy: float
    memcpy: float
    background: float
    share: int


class Saving(NamedTuple):
    """Two saves of a rank, seconds of its processor for one of them, and bytes of the peak."""

    first: Cost
    second: Cost
    busy: float
    peak: int


class Loading(NamedTuple):
    """What a rank measured of a start: seconds, of the processor too; bytes of its peak beside the
    moments that stay."""

    seconds: float
    busy: float
    beside: int


def shared_model(layers: int, width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer with moments, in memory that child processes share."""
    sizes = ModelConfig(rwkv_version="7", n_layer=layers, n_embd=width, vocab_size=65536)
    model = build_model(complete_model(sizes)).share_memory()
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        # No disk or digest asks which values: any will do, and random ones take long.
        for parameter in model.parameters():
            parameter.fill_(0.02)
            moments = {key: parameter.clone() for key in optimizer_state.ADAM_MOMENTS}
            shared = {key: value.share_memory_() for key, value in moments.items()}
            optimizer.state[parameter] = {"step": torch.tensor(1.0), **shared}
    return model, optimizer


class SavedFile:
    """One file, gathered and written by the first rank; the .pth before it."""

    def __init__(self, parts: tuple[Any, Any], rank: int, folder: Path) -> None:
        self._parts, self._rank = parts, rank
        self._path = folder / numbered(0)
        self.copies = HostCopies(keeps=rank == 0)

    def prepare(self) -> None:
        """Takes no memory before it is needed."""

    def copy(self) -> list[Tensor]:
        """Copies what the rank writes, and keeps it until it is written."""
        self._state = optimizer_state.capture(*self._parts, None, copies=self.copies)
        groups = [self._state["weights"], *self._state["moments"].values()]
        return [value for group in groups for value in group.values()]

    def write(self) -> None:
        """Writes it."""
        state = self.__dict__.pop("_state")
        if self._rank == 0:
            save_weights(self._path, state["weights"], torch.bfloat16)
            save_state(state_path(self._path), {**PLAIN, **state})


class SavedFolder:
    """A folder, into which every rank writes; the .pth by a process of its own."""

    def __init__(
        self, parts: tuple[Any, Any], rank: int, ranks: int, folder: Path, board: PartBoard
    ) -> None:
        self._parts, self._rank, self._ranks, self._board = parts, rank, ranks, board
        self._path = folder / numbered(1)
        self._saves = 0
        self.copies = HostCopies(keeps=True)

    def prepare(self) -> None:
        """Takes the memory of the copies, as beside the first steps of a run."""
        prepare_copies(*self._parts, None, copies=self.copies, rank=self._rank, ranks=self._ranks)

    def copy(self) -> list[Tensor]:
        """Copies what the rank writes, and keeps it until it is written."""
        captured = capture_pieces(
            *self._parts, None, copies=self.copies, rank=self._rank, ranks=self._ranks
        )
        self._pieces = captured["pieces"]
        return [piece.values for piece in self._pieces]

    def write(self) -> None:
        """Writes it."""
        self._saves += 1
        folder = self._path.with_name("unfinished.partial")
        place = SavePlace(self._saves, state_path(self._path), folder)

        def complete(files: Any) -> None:
            list_parts(folder, self._ranks, [])
            write_apart(folder, self._path, torch.bfloat16, {})
            complete_folder(folder, files, PLAIN)
            publish(folder, place.path)

        pieces, first = self.__dict__.pop("_pieces"), self._rank == 0
        save = FolderSave(
            self._board, self._rank, place, pieces, *((PLAIN, complete) if first else ())
        )
        del pieces
        save.write()


def saved(way: SavedFile | SavedFolder, barrier: Any, plain: Memcpy) -> Cost:
    """One save, all ranks at once."""
    before = way.copies.kept_bytes
    barrier.wait()
    began, used = time.perf_counter(), time.thread_time()
    values = way.copy()
    paused, busy = time.perf_counter() - began, time.thread_time() - used
    barrier.wait()
    memcpy = plain.seconds(values)
    del values
    barrier.wait()
    written = time.perf_counter()
    way.write()
    background = time.perf_counter() - written
    return Cost(paused, busy, memcpy, background, way.copies.kept_bytes - before)


def load(path: Path, parts: tuple[Any, Any], ranks: Any) -> Loading:
    """Verifies a state, with the other ranks if it is a folder, and restores it."""
    # As in a process that has just started.
    parts[1].state.clear()
    with PeakMemory() as memory:
        began, used = time.perf_counter(), time.process_time()
        with JointVerification(ranks) as verify:
            state = load_state(path, verify)
        optimizer_state.restore(state, *parts, None)
        seconds, busy = time.perf_counter() - began, time.process_time() - used
        stays = sum(v.nbytes for m in state["moments"].values() for v in outlines_of(m).values())
    return Loading(seconds, busy, memory.peak - stays)


def measure(
    rank: int, parts: tuple[Any, Any], ranks: int, folder: Path, port: int, told: Any, barrier: Any
) -> None:
    """What one of the processes does. told: gets a `Measured`."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, ranks, rank == 0)
    own = RankStore(PrefixStore("ranks", store), rank=rank, world_size=ranks)
    own.take_place()
    board = PartBoard(PrefixStore("parts", store), own)
    # Imports and buffers of the first use are no cost of a save.
    torch.save({"a": torch.zeros(1)}, os.devnull)
    plain = Memcpy()
    ways: dict[str, Callable[[], SavedFile | SavedFolder]] = {
        "file": lambda: SavedFile(parts, rank, folder),
        "folder": lambda: SavedFolder(parts, rank, ranks, folder, board),
    }
    found = {}
    for name, make in ways.items():
        with PeakMemory() as memory:
            way, before = make(), time.process_time()
            way.prepare()
            time.sleep(_PREPARING_SECONDS)
            first, second = (saved(way, barrier, plain) for _ in range(2))
            used = time.process_time() - before - first.memcpy - second.memcpy
        found[name] = Saving(first, second, used / 2, memory.peak)
        del way
        barrier.wait()
    del plain
    launch = Launch("benchmark", ranks, rank, rank, ranks)
    for number, name in enumerate(ways):
        barrier.wait()
        path = state_path(folder / numbered(number))
        loading = load(path, parts, SimpleNamespace(launch=launch, store=own))
        told.put((name, found[name], loading))
    own.leave(60.0 if rank == 0 else 0.0)


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--port", type=int, default=29591)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    a = parser.parse_args(argv)
    # Before there are children: those of a pool of threads would not be in them.
    torch.set_num_threads(1)
    parts = shared_model(a.layers, a.width)
    count = sum(p.numel() for p in parts[0].parameters())
    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        folder, context = Path(name), multiprocessing.get_context("fork")
        queue, barrier = context.SimpleQueue(), context.Barrier(a.processes)
        given = (parts, a.processes, folder, a.port, queue, barrier)
        # A child that ends badly ends the others, and this one with its traceback.
        multiprocessing.start_processes(
            measure, given, nprocs=a.processes, join=True, start_method="fork"
        )
        found = [queue.get() for _ in range(2 * a.processes)]
        state = state_path(folder / numbered(1))
        memory = weights_memory(state, folder / "apart.pth")
        outlines = outlines_of(read_parts(state)["weights"]).values()
    load = os.getloadavg()[0]
    print(f"RWKV-7, {count / 1e6:.0f} M parameters, {a.processes} processes, load {load:.0f}")
    print_table(found)
    before, most = (size / 1e6 for size in memory)
    largest = max(outline.numel() for outline in outlines) * 2 / 1e6
    print(
        f"the process that writes the .pth: {most - before:,.0f} MB more at its peak than the "
        f"{before:,.0f} MB it begins with; its largest tensor has {largest:,.0f} MB"
    )
    return 0


def print_table(found: list[tuple[str, Saving, Loading]]) -> None:
    """Prints a line for each way: sums of processor time behind a save, else of the worst rank."""
    columns = ("first pause, s", "pause, s", "its processor, s", "/ memcpy", "background, s")
    more = ("processor, s", "share, MB", "peak / share", "start, s", "processor, s", "beside, MB")
    print(f"| state | {' | '.join((*columns, *more))} |")
    print("|---" * (1 + len(columns) + len(more)) + "|")
    for way in dict.fromkeys(name for name, *_ in found):
        savings = [saving for name, saving, _ in found if name == way]
        loadings = [loading for name, _, loading in found if name == way]
        writing = [saving for saving in savings if saving.second.share]
        seconds = [saving.second for saving in writing]
        most = max(writing, key=lambda saving: saving.peak)
        cells = (
            f"{max(saving.first.pause for saving in writing):.2f}",
            f"{max(cost.pause for cost in seconds):.2f}",
            f"{max(cost.busy for cost in seconds):.2f}",
            f"{sum(cost.busy for cost in seconds) / sum(cost.memcpy for cost in seconds):.2f}",
            f"{max(cost.background for cost in seconds):.1f}",
            f"{sum(saving.busy for saving in savings):.1f}",
            f"{most.second.share / 1e6:,.0f}",
            f"{most.peak / most.second.share:.2f}",
            f"{max(loading.seconds for loading in loadings):.1f}",
            f"{sum(loading.busy for loading in loadings):.1f}",
            f"{max(0, *(loading.beside for loading in loadings)) / 1e6:,.0f}",
        )
        print(f"| {' | '.join((way, *cells))} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
