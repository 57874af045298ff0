"""What a save costs with several processes: one file by the first of them, or a folder by all.

    python -m benchmarks.state_saving [--processes 4] [--layers 16] [--width 768] [--folder DIR]

The processes have the weights and moments of one RWKV-7 model in shared memory, as under ddp every
one has all of them, and save them once each way, with the .pth in bf16. Times of the wall and of
the processors (all processes together), memory in anonymous pages, for the rank that takes most.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import multiprocessing
from torch.distributed import PrefixStore, TCPStore

from rwkv_train.checkpoint.names import numbered
from rwkv_train.checkpoint.resume import load_state, save_state, state_path
from rwkv_train.checkpoint.state_folder import complete_folder, list_parts
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.config.resolve.model_shape import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.files import publish
from rwkv_train.models.registry import build_model
from rwkv_train.training.checkpointing.folder_save import FolderSave, SavePlace
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.checkpointing.weights_apart import write_apart
from rwkv_train.training.distributed.rank_store import RankStore
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.own_pieces import capture_pieces

PLAIN = {"format": 3, "step": 1, "optimizer": "adamw", "optimizer_steps": 1}


class Cost(NamedTuple):
    """What a rank measured: seconds of the pause, of the processor in it, and of what follows;
    bytes of its share and of its peak."""

    pause: float
    busy: float
    background: float
    share: int
    peak: int


class PeakMemory:
    """Watches how many bytes of anonymous memory this process has more than when it began."""

    def __enter__(self) -> PeakMemory:
        self._before, self.peak = _anonymous(), 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, _anonymous() - self._before)


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("Linux alone counts anonymous memory")


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


def save_file(parts: tuple[Any, Any], rank: int, folder: Path) -> Cost:
    """One file, gathered and written by the first rank; the .pth before it."""
    copies = HostCopies(keeps=rank == 0)
    with PeakMemory() as memory:
        began, used = time.perf_counter(), time.thread_time()
        state = optimizer_state.capture(*parts, None, copies=copies)
        paused, busy = time.perf_counter(), time.thread_time() - used
        if rank == 0:
            path = folder / numbered(0)
            save_weights(path, state["weights"], torch.bfloat16)
            save_state(state_path(path), {**PLAIN, **state})
        ended = time.perf_counter()
    return Cost(paused - began, busy, ended - paused, copies.kept_bytes, memory.peak)


def save_folder(
    parts: tuple[Any, Any], rank: int, ranks: int, folder: Path, board: PartBoard
) -> Cost:
    """A folder, into which every rank writes; the .pth by a process of its own."""
    path = folder / numbered(1)
    place = SavePlace(1, state_path(path), folder / "unfinished.partial")
    copies = HostCopies(keeps=True)

    def complete(files: Any) -> None:
        list_parts(place.folder, ranks, [])
        write_apart(place.folder, path, torch.bfloat16, {})
        complete_folder(place.folder, files, PLAIN)
        publish(place.folder, place.path)

    with PeakMemory() as memory:
        began, used = time.perf_counter(), time.thread_time()
        captured = capture_pieces(*parts, None, copies=copies, rank=rank, ranks=ranks)
        paused, busy = time.perf_counter(), time.thread_time() - used
        first = rank == 0
        pieces = captured.pop("pieces")
        save = FolderSave(
            board, rank, place, pieces, PLAIN if first else None, complete if first else None
        )
        del pieces
        save.write()
        ended = time.perf_counter()
    return Cost(paused - began, busy, ended - paused, copies.kept_bytes, memory.peak)


def measure(
    rank: int, parts: tuple[Any, Any], ranks: int, folder: Path, port: int, queue: Any
) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, ranks, rank == 0)
    told = RankStore(PrefixStore("ranks", store), rank=rank, world_size=ranks)
    told.take_place()
    board = PartBoard(PrefixStore("parts", store), told)
    # Imports and buffers of the first use are no cost of a save.
    torch.save({"a": torch.zeros(1)}, os.devnull)
    ways: dict[str, Callable[[], Cost]] = {
        "file": lambda: save_file(parts, rank, folder),
        "folder": lambda: save_folder(parts, rank, ranks, folder, board),
    }
    for name, save in ways.items():
        told.gather(name, None)
        before = time.process_time()
        cost = save()
        queue.put((name, rank, cost, time.process_time() - before))
    told.leave(60.0 if rank == 0 else 0.0)


def load_seconds(path: Path) -> float:
    """Seconds to verify a state and to read all of its tensors, in one process."""
    began = time.perf_counter()
    state = load_state(path)
    for tensors in (state["weights"], *state["moments"].values()):
        for name in tensors:
            tensors[name].clone()
    return time.perf_counter() - began


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
        folder, queue = Path(name), multiprocessing.get_context("fork").SimpleQueue()
        given = (parts, a.processes, folder, a.port, queue)
        # A child that ends badly ends the others, and this one with its traceback.
        multiprocessing.start_processes(
            measure, given, nprocs=a.processes, join=True, start_method="fork"
        )
        found = [queue.get() for _ in range(2 * a.processes)]
        loads = {"file": load_seconds(folder / "rwkv-0.state")}
        loads["folder"] = load_seconds(folder / "rwkv-1.state")
    load = os.getloadavg()[0]
    print(f"RWKV-7, {count / 1e6:.0f} M parameters, {a.processes} processes, load {load:.0f}")
    columns = ("pause, s", "its processor, s", "background, s", "processor, s", "share, MB")
    print(f"| state | {' | '.join(columns)} | peak / share | load, s |")
    print("|---" * 8 + "|")
    for way, seconds in loads.items():
        costs = [(cost, used) for name, _, cost, used in found if name == way]
        most = max((cost for cost, _ in costs), key=lambda cost: cost.peak)
        pause, busy, behind = (max(cost[k] for cost, _ in costs) for k in range(3))
        print(
            f"| {way} | {pause:.2f} | {busy:.2f} | {behind:.1f} | "
            f"{sum(used for _, used in costs):.1f} | {most.share / 1e6:,.0f} | "
            f"{most.peak / max(most.share, 1):.2f} | {seconds:.1f} |"
        )
    # Of the process that writes the .pth, a child's child.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the largest process, shared memory of the model included: {peak:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
