"""Trains RWKV versions to find needles, and asks for them at many depths of longer haystacks.

    python -m benchmarks.needles FOLDER [--versions 6,7] [--needles 1,4] [--lengths 32,64,128,256]

A row is random tokens with some pairs of key and value among them, and at its end one of the keys,
whose value is asked (`make_data.py --synthetic needle`). Each run is `train.py --config
configs/mqar.yaml` on rows of 32 tokens that never come twice; then the model answers held-out rows
of every length, the asked needle at five depths in turn. Runs are kept in FOLDER/runs.jsonl: the
same line again goes on where it was stopped, other settings add to it. Table and FOLDER/needles.png
are of all that have the same rows and steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.mqar import numbers, read_runs, rows_needed, train_on_rows
from make_data import main as make_data
from rwkv_train.inference.loading import load_model
from rwkv_train.inference.recall import recall_score

DEPTHS = (0, 0.25, 0.5, 0.75, 1)
# Of every length: as many for each depth.
TEST_ROWS = 500


class Run(NamedTuple):
    """What a run is told by."""

    version: str
    width: int
    needles: int
    row_tokens: int
    vocab_size: int
    steps: int


def measure(run: Run, lengths: Sequence[int], folder: Path) -> dict[str, Any]:
    """Trains in `folder`; returns the shares that were found by length and depth, and the time."""
    data, out = folder / "needle", folder / "out"
    _make_rows(run, data, run.row_tokens, rows_needed(run), ())
    cost = train_on_rows(run, data, out)
    model = load_model(out / "rwkv-final.pth", device=torch.device("cpu"), dtype=torch.float32)
    found = {}
    for length in lengths:
        # Another seed: rows of the same length would be those of the training.
        _make_rows(run, folder / f"deep{length}", length, 3, DEPTHS)
        score = recall_score(model, f"{folder / f'deep{length}'}_val")
        found[str(length)] = {f"{depth:g}": share for depth, share in score.by_depth().items()}
    return {**run._asdict(), "found": found, **cost}


def _make_rows(run: Run, data: Path, length: int, rows: int, depths: Sequence[float]) -> None:
    words = [
        *("--synthetic", "needle", "--output", data, "--ctx_len", length, "--rows", rows),
        *("--vocab_size", run.vocab_size, "--needles", run.needles),
        *("--val_rows", TEST_ROWS, "--seed", int(bool(depths))),
    ]
    if depths:
        words += ["--depths", ",".join(map(str, depths))]
    assert make_data([str(word) for word in words]) == 0, run


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the runs as a Markdown table, a row for each length."""
    depths = " | ".join(f"depth {depth:g}" for depth in DEPTHS)
    lines = [
        f"| version | width | needles | trained on | steps | asked in | {depths} | CPU | wall |",
        "|" + "---|" * (8 + len(DEPTHS)),
    ]
    for r in sorted(results, key=lambda r: (r["needles"], r["version"])):
        for length, found in r["found"].items():
            shares = " | ".join(f"{share:.3f}" for share in found.values())
            lines.append(
                f"| RWKV-{r['version']} | {r['width']} | {r['needles']} | {r['row_tokens']} | "
                f"{r['steps']} | {length} | {shares} | {r['cpu_seconds']:.0f} s | "
                f"{r['seconds']:.0f} s |"
            )
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Writes a panel for each run: what was found, by length across and depth down."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = sorted(results, key=lambda r: (r["needles"], r["version"]))
    figure, panels = pyplot.subplots(
        1,
        len(results),
        figsize=(1.6 + 2.6 * len(results), 3.6),
        squeeze=False,
        layout="constrained",
    )
    for axes, run in zip(panels[0], results):
        lengths = list(run["found"])
        shares = [[run["found"][length][f"{depth:g}"] for length in lengths] for depth in DEPTHS]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, values in enumerate(shares):
            for column, share in enumerate(values):
                shade = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=shade)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(DEPTHS)), [f"{depth:g}" for depth in DEPTHS])
        axes.set_xlabel("tokens of the row")
        kind = "1 needle" if run["needles"] == 1 else f"{run['needles']} needles"
        axes.set_title(f"RWKV-{run['version']}, {kind}", fontsize=10)
    panels[0][0].set_ylabel("depth of the asked needle")
    figure.colorbar(image, ax=panels[0], label="share of rows answered rightly")
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", type=lambda words: words.split(","), default=["6", "7"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--needles", type=numbers, default=[1, 4])
    parser.add_argument("--row_tokens", type=int, default=32)
    parser.add_argument("--lengths", type=numbers, default=[32, 64, 128, 256])
    parser.add_argument("--vocab_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1600)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the module's docstring describes."""
    o = parser().parse_args(argv)
    o.folder.mkdir(parents=True, exist_ok=True)
    kept = o.folder / "runs.jsonl"
    wanted = [
        Run(version, o.width, needles, o.row_tokens, o.vocab_size, o.steps)
        for needles in o.needles
        for version in o.versions
    ]
    done = {Run(*(result[name] for name in Run._fields)) for result in read_runs(kept)}
    for run in wanted:
        if run not in done:
            with tempfile.TemporaryDirectory() as name:
                result = measure(run, o.lengths, Path(name))
            with kept.open("a") as file:
                file.write(json.dumps(result) + "\n")
    alike = {"row_tokens": o.row_tokens, "vocab_size": o.vocab_size, "steps": o.steps}
    results = [run for run in read_runs(kept) if alike.items() <= run.items()]
    print(table(results))
    title = f"Needles, learnt in {o.steps} steps of rows of {o.row_tokens} tokens"
    plot(results, title, o.folder / "needles.png")
    print(f"figure: {o.folder / 'needles.png'}")


if __name__ == "__main__":
    main()
