"""How long a save holds training up: written by training itself, and in the background.

    python -m benchmarks.saving [--layers 6] [--width 512] [--saves 6] [--folder DIR]

Trains a model with random data and saves its state at every fourth step. The pause is the time that
training spends in a save: the copy, then the writing, or the wait for the save before it. Medians,
both ways in one run each on the same machine; the ratio is the result. The disk's own speed is part
of it: give a folder on the disk you save to.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import train
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.reporting.metrics_file import read_metrics


def pauses(background: bool, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Returns the median seconds of (a step without its save, the pause of a save)."""
    data = folder / "tokens.bin"
    if not data.exists():
        tokens = torch.randint(0, options.vocab, (200_000,), dtype=torch.int32).short()
        data.write_bytes(tokens.numpy().tobytes())
    saves: list[float] = []
    save = Saver.save_between

    def timed(*arguments: object) -> None:
        began = time.perf_counter()
        save(*arguments)
        saves.append(time.perf_counter() - began)

    out = folder / str(background)
    flags = {
        "proj_dir": out,
        "data_file": data,
        "data_type": "uint16",
        "rwkv_version": 7,
        "vocab_size": options.vocab,
        "n_layer": options.layers,
        "n_embd": options.width,
        "ctx_len": 128,
        "micro_bsz": 4,
        "max_steps": 4 * options.saves + 5,
        "exit_tokens": 10**9,
        "epoch_steps": 10**6,
        "save_every_steps": 4,
        "keep_last": 1,
        "save_in_background": int(background),
        "accelerator": "cpu",
        "devices": 1,
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
    }
    Saver.save_between = timed
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            status = train.main([w for k, v in flags.items() for w in (f"--{k}", str(v))])
    finally:
        Saver.save_between = save
    assert status == 0, f"the run ended with status {status}"
    rates = [r["tokens_per_second"] for r in read_metrics(out) if "loss" in r]
    # the first save makes the files' folders and the first step allocates
    return 4 * 128 / statistics.median(rates[1:]), statistics.median(saves[1:])


def main(argv: list[str]) -> int:
    """Prints both pauses and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args(argv)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows = [
            (way, *pauses(way == "in the background", folder, options))
            for way in ("at once", "in the background")
        ]
        size = max(file.stat().st_size for file in folder.rglob("*.state")) / 1e6
    print(f"RWKV-7, {options.layers} layers, width {options.width}; a state is {size:.0f} MB")
    print(f"{'written':18} {'step, s':>8} {'pause, s':>9} {'pause / step':>13}")
    for way, step, pause in rows:
        print(f"{way:18} {step:8.3f} {pause:9.3f} {pause / step:13.2f}")
    print(f"the pause in the background is {rows[1][2] / rows[0][2]:.2f} of the one at once")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
