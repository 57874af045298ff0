"""How long a save holds training up: written by training itself, and in the background.

    python -m benchmarks.saving [--layers 6] [--width 512] [--saves 6] [--folder DIR]

Trains a model with random data and saves its state at every other step. A pause is what a step with
a save takes beyond one without, medians of both. Both ways in one run each, on the same machine;
the ratio is the result. The disk's own speed is part of it: give a folder on the disk you save to.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import train
from src.training.loop import Loop


def pauses(background: bool, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """(median seconds of a step without a save, what a save adds to one)."""
    data = folder / "tokens.bin"
    if not data.exists():
        tokens = torch.randint(0, options.vocab, (200_000,), dtype=torch.int32).short()
        data.write_bytes(tokens.numpy().tobytes())
    moments: list[float] = []
    end = Loop.on_train_batch_end

    def timed(*arguments: object) -> None:
        end(*arguments)
        moments.append(time.perf_counter())

    steps = 2 * options.saves + 3
    flags = {
        "proj_dir": folder / str(background), "data_file": data, "data_type": "uint16",
        "rwkv_version": 7, "vocab_size": options.vocab, "n_layer": options.layers,
        "n_embd": options.width, "ctx_len": 128, "micro_bsz": 4, "max_steps": steps,
        "exit_tokens": 10**9, "epoch_steps": 10**6, "save_every_steps": 2, "keep_last": 1,
        "save_in_background": int(background), "accelerator": "cpu", "devices": 1,
        "precision": "fp32", "num_workers": 0, "plot": 0,
    }
    Loop.on_train_batch_end = timed
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            status = train.main([w for k, v in flags.items() for w in (f"--{k}", str(v))])
    finally:
        Loop.on_train_batch_end = end
    assert status == 0, f"the run ended with status {status}"
    took = [after - before for before, after in itertools.pairwise(moments)]
    # took[i] is step i + 1, which is followed by a save when i + 2 is even; the first warms up.
    plain = [seconds for i, seconds in enumerate(took) if i % 2 == 1]
    saving = [seconds for i, seconds in enumerate(took) if i % 2 == 0 and i > 0]
    step = statistics.median(plain)
    return step, statistics.median(saving) - step


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
        rows = [(way, *pauses(way == "in the background", folder, options))
                for way in ("at once", "in the background")]
        size = sum(f.stat().st_size for f in folder.rglob("*.state")) / 1e6 / 4
    print(f"RWKV-7, {options.layers} layers, width {options.width}; a state is {size:.0f} MB")
    print(f"{'written':18} {'step, s':>8} {'pause, s':>9} {'pause / step':>13}")
    for way, step, pause in rows:
        print(f"{way:18} {step:8.3f} {pause:9.3f} {pause / step:13.2f}")
    print(f"the pause in the background is {rows[1][2] / rows[0][2]:.2f} of the one at once")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
