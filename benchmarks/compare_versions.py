"""Trains every RWKV version on the same text, tokens, order and rates and compares the losses.

    python -m benchmarks.compare_versions [--megabytes 1] [--layers 4] [--width 128] [--steps 500]

Prints a table of training loss (mean of the last tenth), validation loss, parameters and the time
relative to RWKV-4 in the same run. The corpus is Python's standard library, byte tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import train
from make_data import main as make_data
from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.data.inspect.statistics import unigram_entropy
from rwkv_train.data.text.demo_corpus import main as make_corpus
from rwkv_train.training.reporting.metrics_file import read_metrics

CTX_LEN = 256
BATCH = 8


def measure(
    version: str, prefix: Path, out: Path, options: argparse.Namespace, *extra: str
) -> dict:
    """Makes one run in the folder `out` with `extra` flags; returns its figures."""
    began = time.perf_counter()
    status = train.main(
        [
            "--proj_dir",
            str(out),
            "--data_file",
            str(prefix),
            "--val_data_file",
            f"{prefix}_val",
            "--rwkv_version",
            version,
            "--n_layer",
            str(options.layers),
            "--n_embd",
            str(options.width),
            "--ctx_len",
            str(CTX_LEN),
            "--micro_bsz",
            str(BATCH),
            "--exit_tokens",
            str(options.steps * CTX_LEN * BATCH),
            "--epoch_steps",
            str(max(1, options.steps // 5)),
            "--epoch_save",
            "0",
            "--lr_init",
            "2e-3",
            "--lr_final",
            "2e-4",
            "--warmup_steps",
            "10",
            "--weight_decay",
            "0.001",
            "--adam_eps",
            "1e-18",
            "--accelerator",
            "cpu",
            "--precision",
            "fp32",
            "--random_seed",
            "1",
            "--plot",
            "0",
            "--enable_progress_bar",
            "0",
            "--wkv_backend",
            options.backend,
            *extra,
        ]
    )
    assert status == 0, f"RWKV-{version} ended with status {status}"
    records = read_metrics(out)
    losses = [r["loss"] for r in records if "loss" in r]
    tail = losses[-max(1, len(losses) // 10) :]
    shapes = read_shapes(out / "rwkv-final.pth")
    return {
        "train": sum(tail) / len(tail),
        "val": [r["val_loss"] for r in records if "val_loss" in r][-1],
        "parameters": sum(_size(shape) for shape in shapes.values()),
        "seconds": time.perf_counter() - began,
    }


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of a comparison: how much text, how large a model, how many steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--backend", default="auto")
    return parser


def make_pair(folder: Path, megabytes: float) -> Path:
    """Returns the prefix of a pair of so much text; the held-out part lies next to it."""
    text, prefix = folder / "text.jsonl", folder / "text"
    make_corpus([str(text), "--max_megabytes", str(megabytes)])
    make_data(
        [
            str(text),
            "1",
            str(CTX_LEN),
            "--output",
            str(prefix),
            "--tokenizer",
            "bytes",
            "--seed",
            "1",
            "--validation",
            "0.05",
        ]
    )
    return prefix


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prefix = make_pair(folder, options.megabytes)
        rows = {v: measure(v, prefix, folder / f"v{v}", options) for v in "4567"}
        entropy = unigram_entropy(f"{prefix}_val")
    tokens = options.steps * CTX_LEN * BATCH
    print(
        f"\n{options.layers} layers, width {options.width}, {tokens:,} byte tokens of "
        f"{options.megabytes:g} MB; unigram entropy of the held-out part {entropy:.4f}"
    )
    print(f"{'version':<10}{'parameters':>12}{'train loss':>12}{'val loss':>10}{'time / v4':>11}")
    for version, row in rows.items():
        ratio = row["seconds"] / rows["4"]["seconds"]
        print(
            f"RWKV-{version:<5}{row['parameters']:>12,}{row['train']:>12.4f}{row['val']:>10.4f}"
            f"{ratio:>11.2f}"
        )


if __name__ == "__main__":
    main()
