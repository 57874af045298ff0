"""Measures how often a model recalls what it has read, on data that `--synthetic` made:

    python -m rwkv_train.inference.recall --load_model X.pth --data_file PREFIX_val

An answer is a token that the loss mask counts; it is right when it has the largest logit of the
whole vocabulary at the token before it. A row is right when all of its answers are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkv_train.command_line import (
    OneLineParser,
    let_readers_leave,
    path_argument,
    program,
    status_of,
)
from rwkv_train.data.binidx.loss_mask import LossMask, find_mask
from rwkv_train.data.binidx.manifest import manifest_prefix, pair_digests, read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.inference.loading import load_model
from rwkv_train.models.backbone import RWKV
from rwkv_train.processors import prepare_threads

# Tokens read together; a longer row is read alone.
_BATCH_TOKENS = 1 << 14


@dataclass(frozen=True)
class RecallScore:
    """Right answers by row.

    asked, right: [rows], answers of each and those of them that are right.
    depths: where needles lie, taken in turn by the rows; (): not known.
    """

    asked: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    depths: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of all answers that are right."""
        return float(self.right.sum() / self.asked.sum())

    @property
    def row_accuracy(self) -> float:
        """Share of the rows of which all answers are right."""
        return float((self.right == self.asked).mean())

    def by_depth(self) -> dict[float, float]:
        """Returns depth -> share of the rows with the needle there that are right."""
        places = np.arange(len(self.asked)) % max(1, len(self.depths))
        rows_right = self.right == self.asked
        return {
            depth: float(rows_right[places == place].mean())
            for place, depth in enumerate(self.depths)
            if (places == place).any()
        }


@torch.no_grad()
def recall_score(model: RWKV, prefix: str, rows: int | None = None) -> RecallScore:
    """Returns the answers of `model` in the rows of the data under `prefix`.

    rows: at most so many of them, from the first on; None: all.  Raises DataError for data without
    a loss mask, of which no answer is known, and for ids beyond the model's vocabulary.
    """
    asked, right = [], []
    pairs, mask, depths = _open(prefix)
    for tokens, weights in _batches(pairs, mask, rows):
        largest = int(tokens.max())
        if largest >= model.config.vocab_size:
            raise DataError(
                f"{prefix} holds the token {largest}, but the model's vocabulary is "
                f"{model.config.vocab_size}; give the data that it was trained for"
            )
        counts = weights[:, 1:] > 0
        found = _right(model, tokens, counts)
        asked.append(counts.sum(1))
        right.append(found.sum(1))
    return RecallScore(np.concatenate(asked), np.concatenate(right), depths)


def _right(
    model: RWKV, tokens: npt.NDArray[np.int64], counts: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Returns [rows, T - 1] whether the token after each place counts and was the likeliest."""
    device = model.emb.weight.device
    ids = torch.from_numpy(tokens).to(device)
    x, _ = model.features(ids[:, :-1])  # [rows, T - 1, C]
    # Logits of the answers alone: those of every token of a long row would take gigabytes.
    places: Tensor = torch.from_numpy(counts).to(device)
    likeliest = model.head(x[places][None]).argmax(-1)[0]
    found = np.zeros(counts.shape, np.bool_)
    found[counts] = (likeliest == ids[:, 1:][places]).cpu().numpy()
    return found


def _open(prefix: str) -> tuple[list[Binidx], LossMask, tuple[float, ...]]:
    prefix = manifest_prefix(prefix)
    manifest = read_manifest(prefix)
    pairs = [Binidx(p) for p in ([prefix] if manifest is None else pair_digests(prefix, manifest))]
    mask = find_mask(prefix, pairs, manifest)
    if mask is None:
        raise DataError(
            f"{prefix} has no loss mask, which tells the answers; make the data with make_data.py "
            "--synthetic"
        )
    depths = [] if manifest is None else manifest.made_from.get("depths") or []
    return pairs, mask, tuple(depths)


def _batches(
    pairs: list[Binidx], mask: LossMask, limit: int | None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
    """Yields tokens and weights, [rows, T] each, of rows of one length that follow one another."""
    waiting: list[tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]] = []
    begin = number = 0
    for pair in pairs:
        for item in range(pair.item_count):
            if number == limit:
                break
            row = pair.item(item)
            weights = mask.get(begin, len(row))
            begin, number = begin + len(row), number + 1
            full = waiting and (len(waiting) + 1) * len(row) > _BATCH_TOKENS
            if waiting and (full or len(waiting[0][0]) != len(row)):
                yield _stacked(waiting)
                waiting = []
            waiting.append((row, weights))
    if waiting:
        yield _stacked(waiting)


def _stacked(
    rows: list[tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    tokens, weights = zip(*rows)
    return np.stack(tokens).astype(np.int64), np.stack(weights)


def recall_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    p = OneLineParser(
        prog="python -m rwkv_train.inference.recall",
        description="Measures how often a model recalls what it has read.",
    )
    p.add_argument("--load_model", required=True, type=path_argument, help="checkpoint")
    p.add_argument(
        "--data_file",
        required=True,
        type=path_argument,
        metavar="PREFIX",
        help="data of make_data.py --synthetic; PREFIX_val is held out from training",
    )
    p.add_argument("--rows", type=int, metavar="N", help="the first N rows (default: all)")
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the score; returns 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    a = recall_parser().parse_args(argv)
    let_readers_leave()
    return status_of(lambda: _score(a), prints=True)


def _score(a: argparse.Namespace) -> None:
    if a.rows is not None and a.rows < 1:
        raise ConfigError(f"--rows {a.rows} must be at least 1")
    prepare_threads()
    device = _device(a.device)
    model = load_model(Path(a.load_model), device=device, dtype=torch.float32)
    print(told(recall_score(model, a.data_file, a.rows)))


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU here; use --device cpu")
    return torch.device(name)


def told(score: RecallScore) -> str:
    """Returns the score in words, a line for every depth of needles."""
    lines = [
        f"{score.right.sum()} of {score.asked.sum()} answers are right: {score.accuracy:.2%}; all "
        f"of a row in {score.row_accuracy:.2%} of {len(score.asked)} rows"
    ]
    lines += [
        f"  depth {depth:g}: {share:.2%} of the rows" for depth, share in score.by_depth().items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
