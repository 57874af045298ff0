"""Trains the RWKV versions to recall what they have read, and draws how well they do.

    python -m benchmarks.mqar FOLDER [--versions 4,5,6,7] [--widths 64] [--pairs 2,4,8,16]

Multi-query associative recall (`make_data.py --synthetic mqar`): some pairs of key and value in a
row of 64 tokens, then every key once more, whose value is asked. Each run is `train.py --config
configs/mqar.yaml` on rows that never come twice; every 50 steps the checkpoint answers held-out
rows. Runs are kept in FOLDER/runs.jsonl: the same line again goes on where it was stopped, other
settings add to it. Table and FOLDER/mqar.png are of all that have the same rows and steps.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

import train
from benchmarks.mqar_plot import plot
from make_data import main as make_data
from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.inference.loading import load_model
from rwkv_train.inference.recall import recall_score

CONFIG = Path(__file__).parents[1] / "configs" / "mqar.yaml"
ROWS_PER_STEP = 32
STEPS_BETWEEN_TESTS = 50
TEST_ROWS = 500


class Run(NamedTuple):
    """What a run is told by."""

    version: str
    width: int
    pairs: int
    row_tokens: int
    vocab_size: int
    steps: int


class TrainedRows(Protocol):
    """What `train_on_rows` has to know of a run."""

    @property
    def version(self) -> str:
        """Of RWKV."""

    @property
    def width(self) -> int:
        """Of the model."""

    @property
    def row_tokens(self) -> int:
        """Of a row, which is a sample."""

    @property
    def steps(self) -> int:
        """Of training, `ROWS_PER_STEP` rows each."""


def rows_needed(run: TrainedRows) -> int:
    """Returns how many rows a run takes: the permutation reads nearly all once, and none twice."""
    return run.steps * ROWS_PER_STEP * 11 // 10 + 100


def train_on_rows(run: TrainedRows, data: Path, out: Path) -> dict[str, float]:
    """Trains on the rows of `data` into the folder `out`; returns parameters and seconds taken."""
    flags = (
        *("--config", CONFIG, "--proj_dir", out, "--data_file", data),
        *("--val_data_file", f"{data}_val", "--ctx_len", run.row_tokens),
        *("--rwkv_version", run.version, "--n_embd", run.width),
        *("--exit_tokens", run.steps * ROWS_PER_STEP * run.row_tokens),
        *("--epoch_steps", STEPS_BETWEEN_TESTS, "--plot", 0, "--enable_progress_bar", 0),
    )
    if run.version != "4":
        # A model of less than the usual 64 has one head.
        flags += ("--head_size", min(64, run.width))
    began, cpu_began = time.perf_counter(), cpu_seconds()
    assert train.main([str(word) for word in flags]) == 0, run
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    sizes = (torch.Size(shape).numel() for shape in read_shapes(out / "rwkv-final.pth").values())
    return {"parameters": sum(sizes), "seconds": seconds, "cpu_seconds": cpu}


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """Trains in `folder`; returns accuracies by step, and the time that the training took."""
    data, out = folder / "mqar", folder / "out"
    made = (
        *("--synthetic", "mqar", "--output", data, "--ctx_len", run.row_tokens),
        *("--vocab_size", run.vocab_size, "--pairs", run.pairs),
        *("--rows", rows_needed(run), "--val_rows", TEST_ROWS),
    )
    assert make_data([str(word) for word in made]) == 0, run
    cost = train_on_rows(run, data, out)
    return {**run._asdict(), "accuracy": accuracies(out, f"{data}_val", run.steps), **cost}


def accuracies(out: Path, prefix: str, steps: int) -> dict[str, float]:
    """Returns step -> share of right answers, for all checkpoints of a run."""
    names = {"0": "init", str(steps): "final"}
    numbers = range(1, -(-steps // STEPS_BETWEEN_TESTS))
    names |= {str(n * STEPS_BETWEEN_TESTS): str(n - 1) for n in numbers}
    found = {}
    for step, name in sorted(names.items(), key=lambda item: int(item[0])):
        path = out / f"rwkv-{name}.pth"
        model = load_model(path, device=torch.device("cpu"), dtype=torch.float32)
        found[step] = recall_score(model, prefix).accuracy
    return found


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the runs as a Markdown table."""
    lines = [
        "| version | width | pairs | row | vocabulary | parameters | steps | accuracy | "
        "99 % at step | CPU | wall |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: (r["width"], r["pairs"], r["version"])):
        solved = [step for step, share in r["accuracy"].items() if share >= 0.99]
        lines.append(
            f"| RWKV-{r['version']} | {r['width']} | {r['pairs']} | "
            f"{r['row_tokens']} | {r['vocab_size']} | {r['parameters']:,} | "
            f"{r['steps']} | {r['accuracy'][str(r['steps'])]:.3f} | "
            f"{solved[0] if solved else '-'} | {r['cpu_seconds']:.0f} s | {r['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Returns the runs kept in a file, none when it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", type=lambda words: words.split(","), default=list("4567"))
    parser.add_argument("--widths", type=numbers, default=[64])
    parser.add_argument("--pairs", type=numbers, default=[2, 4, 8, 16])
    parser.add_argument("--row_tokens", type=int, default=64)
    parser.add_argument("--vocab_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    return parser


def numbers(words: str) -> list[int]:
    """Returns the numbers of a flag, with commas between them."""
    return [int(word) for word in words.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the module's docstring describes."""
    options = parser().parse_args(argv)
    steps = options.steps
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "runs.jsonl"
    wanted = [
        Run(version, width, pairs, options.row_tokens, options.vocab_size, steps)
        for width in options.widths
        for pairs in options.pairs
        for version in options.versions
    ]
    done = {Run(*(result[name] for name in Run._fields)) for result in read_runs(kept)}
    for run in wanted:
        if run not in done:
            with tempfile.TemporaryDirectory() as name:
                result = measure(run, Path(name))
            with kept.open("a") as file:
                file.write(json.dumps(result) + "\n")
    alike = {"row_tokens": options.row_tokens, "vocab_size": options.vocab_size, "steps": steps}
    results = [run for run in read_runs(kept) if alike.items() <= run.items()]
    print(table(results))
    title = (
        f"Multi-query associative recall: rows of {options.row_tokens} tokens, vocabulary "
        f"{options.vocab_size}, {steps} steps of {ROWS_PER_STEP} rows, 2 layers"
    )
    plot(results, title, options.folder / "mqar.png")
    print(f"figure: {options.folder / 'mqar.png'}")


if __name__ == "__main__":
    main()
