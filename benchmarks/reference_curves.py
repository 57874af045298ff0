"""Makes the band of known-good losses that report.html compares the demo's runs with.

    python -m benchmarks.reference_curves train --folder F [--versions 6 7 4 5] [--seeds 1 2] \\
        [--steps 300] [--most_minutes 25]
    python -m benchmarks.reference_curves band --folder F

`train` makes the runs of ./demo-training-run.sh on a CPU, of which it does the first steps, in F;
started again it goes on where it was. Seed 1 reads the demo's corpus, every other one other files
of Python's standard library, for the text of another machine is another one too. `band` writes
what they have in common into the package: src/rwkv_train/report/reference_curves.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from pathlib import Path
from statistics import fmean

import train
from make_data import main as make_data
from rwkv_train import report
from rwkv_train.data.text.demo_corpus import documents, standard_library
from rwkv_train.report.run_records import read_metrics, read_starts

CORPUS_BYTES = 6_000_000
# As ./demo-training-run.sh has them on a CPU; tests/report compares.
DEMO_FLAGS = {
    "n_layer": "4",
    "n_embd": "192",
    "ctx_len": "256",
    "micro_bsz": "8",
    "precision": "fp32",
    "strategy": "auto",
    "lr_init": "3e-3",
    "lr_final": "3e-4",
    "warmup_steps": "10",
    "beta1": "0.9",
    "beta2": "0.99",
    "adam_eps": "1e-18",
    "weight_decay": "0.001",
    "grad_clip": "1.0",
    "epoch_steps": "200",
    "epoch_save": "1",
}
DEMO_STEPS = 1000
# Last steps of the windows whose mean losses are compared: short ones where the loss falls fast.
WINDOW_ENDS = (*(5, 10, 20, 30, 40, 60, 80, 100), *range(125, DEMO_STEPS + 1, 25))
# Of the loss on each side. Two runs of a version with other seeds and other files differ by up to
# 3.3 % in a window; another release of Python has other files too.
LEAST_WIDTH, LONE_WIDTH = 0.06, 0.08
OUTPUT = Path(report.__file__).parent / "reference_curves.json"
# Settings of a run, besides its version, that the band is for; `global batch` is worked out, and
# `data` is the name of data_file.
APPLIES_TO = {
    **{"data": "python-bytes", "vocab_size": 257, "ctx_len": 256, "global batch": 8},
    **{"n_layer": 4, "n_embd": 192, "precision": "fp32", "optimizer": "adamw"},
    **{"lr_init": 0.003, "lr_final": 0.0003, "warmup_steps": 10, "exit_tokens": 2_048_000},
    **{"train_type": "all", "load_model": None, "chunk_len": None},
}


def make_pair(folder: Path, seed: int) -> Path:
    """Returns the prefix of the text of a seed; the held-out part lies next to it."""
    prefix = folder / f"python{seed}-bytes"
    if not prefix.with_suffix(".idx").exists():
        text = folder / f"python{seed}.jsonl"
        text.write_text("".join(_lines(seed)), encoding="utf-8")
        flags = {"--output": prefix, "--tokenizer": "bytes", "--seed": seed, "--validation": 0.05}
        words = [str(word) for flag in flags.items() for word in flag]
        assert make_data([str(text), "1", DEMO_FLAGS["ctx_len"], *words]) == 0
    return prefix


def _lines(seed: int) -> list[str]:
    """Returns rows of files until the demo's size is reached; seed 1: the demo's own files."""
    texts = list(documents(standard_library()))
    if seed != 1:
        texts.sort(key=lambda text: hashlib.sha256(f"{seed}{text}".encode()).digest())
    lines, size = [], 0
    for text in texts:
        size += len(text.encode())
        if size > CORPUS_BYTES:
            break
        lines.append(json.dumps({"text": text}) + "\n")
    return lines


def train_run(folder: Path, version: str, seed: int, steps: int) -> None:
    """Trains a version to a step, from where an earlier call has left it."""
    prefix = make_pair(folder, seed)
    flags = {
        **DEMO_FLAGS,
        "rwkv_version": version,
        "random_seed": seed,
        "data_file": prefix,
        "val_data_file": f"{prefix}_val",
        "proj_dir": folder / f"v{version}-seed{seed}",
        "exit_tokens": DEMO_STEPS * int(DEMO_FLAGS["ctx_len"]) * int(DEMO_FLAGS["micro_bsz"]),
        "max_steps": steps,
        "accelerator": "cpu",
        "devices": 1,
        "plot": 0,
        "enable_progress_bar": 0,
    }
    status = train.main([w for name, value in flags.items() for w in (f"--{name}", str(value))])
    assert status == 0, f"RWKV-{version}, seed {seed} ended with status {status}"


def window_losses(folder: Path) -> list[float]:
    """Returns the mean loss of every window that a run has completed."""
    losses = {r["step"] + 1: r["loss"] for r in read_metrics(folder) if "loss" in r}
    ends = [end for end in WINDOW_ENDS if end in losses]
    begins = [0, *ends[:-1]]
    return [fmean(losses[s] for s in range(b + 1, e + 1)) for b, e in zip(begins, ends)]


def band_of(runs: list[list[float]]) -> dict:
    """Returns the band of a version's runs, one of which may be longer than the others.

    Half of its width is three times the largest distance of a run from the middle, and at least
    LEAST_WIDTH of the loss. Where one run alone has come, the distance is the largest one before,
    and the width at least LONE_WIDTH: the middle is that run's own.
    """
    middles, halves, farthest = [], [], 0.0
    for i in range(max(map(len, runs))):
        found = [run[i] for run in runs if len(run) > i]
        middle = fmean(found)
        share = max(abs(loss / middle - 1) for loss in found)
        farthest = max(farthest, share)
        alone = len(found) == 1
        middles.append(middle)
        halves.append(
            middle * max(3 * (farthest if alone else share), LONE_WIDTH if alone else LEAST_WIDTH)
        )
    steps = list(WINDOW_ENDS[: len(middles)])
    step_tokens = int(DEMO_FLAGS["ctx_len"]) * int(DEMO_FLAGS["micro_bsz"])
    return {
        "runs": len(runs),
        "steps": steps,
        "tokens": [step * step_tokens for step in steps],
        "low": [round(m - h, 4) for m, h in zip(middles, halves)],
        "middle": [round(m, 4) for m in middles],
        "high": [round(m + h, 4) for m, h in zip(middles, halves)],
    }


def write_band(folder: Path) -> None:
    """Writes what all runs of a folder have in common, and where it comes from."""
    bands, runs = {}, []
    for version in "4567":
        folders = sorted(folder.glob(f"v{version}-seed*"))
        found = [window_losses(run) for run in folders]
        if found:
            bands[version] = band_of(found)
        for run, windows in zip(folders, found):
            machine = read_starts(run)[-1]["machine"]
            runs.append(
                {
                    "run": run.name,
                    "steps": WINDOW_ENDS[len(windows) - 1],
                    "time": read_starts(run)[-1]["time"],
                    "python": machine["python"],
                    "torch": machine["packages"]["torch"],
                    "code": machine["code"].split()[0],
                }
            )
    text = json.dumps(
        {
            "made_by": "python -m benchmarks.reference_curves",
            "text": f"files of Python's standard library, {CORPUS_BYTES:,} bytes, of which 5 % are "
            "held out; seed 1: those of the demo, others: another choice of files",
            "width": "three times the largest distance of a run from the middle, at least "
            f"{LEAST_WIDTH:.0%} of the loss on each side, {LONE_WIDTH:.0%} where one run alone is",
            "runs": runs,
            "applies_to": APPLIES_TO,
            "bands": bands,
        },
        indent=1,
    )
    OUTPUT.write_text(_numbers_on_a_line(text) + "\n", encoding="utf-8")
    ends = ", ".join(f"RWKV-{v} to step {band['steps'][-1]}" for v, band in bands.items())
    print(f"wrote {OUTPUT}: {ends}")


def _numbers_on_a_line(text: str) -> str:
    return re.sub(r"\[[\d\s.,]+\]", lambda found: " ".join(found[0].split()), text)


def main() -> None:
    """Runs what the module's docstring describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "band"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--versions", nargs="+", default=["6", "7", "4", "5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--most_minutes", type=float, default=25, help="of processor time")
    options = parser.parse_args()
    if options.what == "band":
        write_band(options.folder)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for version in options.versions:
            if time.process_time() > options.most_minutes * 60:
                print(f"stopped before RWKV-{version}, seed {seed}: the time is used up")
                return
            train_run(options.folder, version, seed, options.steps)
            print(f"{time.process_time() / 60:.1f} minutes of processor time", flush=True)


if __name__ == "__main__":
    main()
