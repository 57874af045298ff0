"""Reads metrics.jsonl while it grows, and keeps a bounded picture of it, however long it is.

Besides times.jsonl, which is short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from rwkv_train.goodput import add_seconds, no_seconds, seconds_beside_steps
from rwkv_train.report.run_lives import LifeAccount, last_account
from rwkv_train.report.run_records import METRICS_FILE, has_numbers, metrics_record, read_times
from rwkv_train.report.step_bins import MOST_BINS, Matrix, StepBins, thinned

Record = dict[str, Any]
# Keys of a step's record that are drawn.
STEP_KEYS = (
    *("step", "tokens", "loss", "lr", "weight_decay", "grad_norm", "tokens_per_second"),
    *("loop_share", "seconds", "data_share", "communication_share", "save_share"),
    *("validation_share", "mfu", "mfu_card", "memory"),
)
# Parts of a step's seconds: their name in a record, and in words.
PAUSES = {
    "data": "waiting for data",
    "communication": "waiting for other ranks",
    "save": "saving",
    "validation": "validation",
}
# Seconds of each step, in all and of each pause: means of shares would weigh every step alike.
COLUMNS = (*STEP_KEYS, "whole_seconds", *(f"{name}_seconds" for name in PAUSES))
# What a step's record has, and no other.
_STEP_MARK = b', "lr": '
_BLOCK_BYTES = 1 << 20
# Of more than this, about 150,000 steps, a part of every block is read.
_READ_WHOLE_BYTES = 48 << 20


class KeptRecords:
    """The records of one kind: their number, and at most 2 `most` of them, spread evenly."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self.records: list[Record] = []
        self._most = most

    def add(self, record: Record) -> None:
        """Adds one behind the others."""
        self.count += 1
        self.records.append(record)
        if len(self.records) > 2 * self._most:
            self.records = self.spread(self._most)

    def spread(self, most: int) -> list[Record]:
        """Returns at most so many, the first and the last of them always."""
        return [self.records[i] for i in thinned(len(self.records), most)]


class RunHistory:
    """A run's curves and events, as far as `update` has read them.

    steps: taken; read_share: part of their records that was read. last: the newest step's record.
    account: of the run's wall time; None: it has kept none, and `beside` is what its starts tell.
    Every event has step and tokens. most_bins: points of a curve.
    """

    def __init__(self, folder: Path, most_bins: int = MOST_BINS) -> None:
        self.folder = folder
        self._most_bins = most_bins
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self.steps = self._read = 0
        self.bins = StepBins(COLUMNS, self._most_bins)
        self.last: Record | None = None
        self.account: LifeAccount | None = None
        self.events = {
            "skipped": KeptRecords(250),
            "empty": KeptRecords(250),
            "rollback": KeptRecords(100),
            "slow": KeptRecords(100),
            "val_loss": KeptRecords(600),
            "samples": KeptRecords(40),
            "eval": KeptRecords(200),
            "grad_norms": KeptRecords(300),
        }
        self._forget_times()

    def _forget_times(self) -> None:
        self.events["start_up_seconds"] = KeptRecords(200)
        self.events["ending_seconds"] = KeptRecords(200)
        # Sums over all starts and endings, of which not all need be kept.
        self.beside = no_seconds()

    @property
    def read_share(self) -> float:
        """1, or less where a long file was read in parts."""
        return self._read / self.steps if self.steps else 1.0

    def update(self) -> None:
        """Reads what was appended since the last call; all of it where the file was rewritten."""
        self._read_steps()
        self._forget_times()
        for record in read_times(self.folder):
            self._take_time(record)
        self.account = last_account(self.folder)

    def _read_steps(self) -> None:
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return
        unread = path.stat().st_size - self._offset
        if unread < 0:
            self._forget()
            unread = path.stat().st_size
        parts = 1 + unread // _READ_WHOLE_BYTES
        with path.open("rb") as file:
            file.seek(self._offset)
            rest = b""
            while block := file.read(_BLOCK_BYTES):
                whole, _, rest = (rest + block).rpartition(b"\n")
                if whole:
                    # The beginning of a curve is steep.
                    self._take_block(whole, parts if self._offset else 1)
                    self._offset += len(whole) + 1

    def _take_block(self, block: bytes, parts: int) -> None:
        """Takes the lines of the last of so many parts of a block, and all that are no steps."""
        if parts > 1:
            cut = block.find(b"\n", len(block) - len(block) // parts) + 1
            passed, block = block[:cut], block[cut:]
            steps = passed.count(_STEP_MARK)
            self.steps += steps
            if steps != passed.count(b"\n"):
                lines = passed.split(b"\n")
                self._take([line for line in lines if line and _STEP_MARK not in line])
        self._take([line for line in block.split(b"\n") if line])

    def _take(self, lines: Sequence[bytes]) -> None:
        """Takes lines in order: runs of steps at once, every other one by itself."""
        steps: list[Record] = []
        for record in _records(lines):
            if "loss" in record and "tokens" in record:
                steps.append(record)
            else:
                self._take_steps(steps)
                steps = []
                self._take_event(record)
        self._take_steps(steps)

    def _take_steps(self, records: list[Record]) -> None:
        if not records:
            return
        self.last = records[-1]
        self.steps += len(records)
        self._read += len(records)
        self.bins.add(_with_seconds(_matrix(records)))
        for record in records:
            if isinstance(record.get("grad_norms"), dict):
                self._keep("grad_norms", record)

    def _take_event(self, record: Record) -> None:
        if type(record.get("step")) is not int:
            return
        for kind in ("skipped", "rollback", "slow", "val_loss", "samples", "eval"):
            if kind in record:
                is_empty = kind == "skipped" and "suspects" not in record
                self._keep("empty" if is_empty else kind, record)
                return

    def _take_time(self, record: Record) -> None:
        if type(record.get("step")) is not int:
            return
        add_seconds(self.beside, seconds_beside_steps(record))
        for kind in ("start_up_seconds", "ending_seconds"):
            if kind in record:
                self._keep(kind, record)

    def _keep(self, kind: str, record: Record) -> None:
        step = record["step"]
        tokens = record.get("tokens")
        if tokens is None and self.last is not None and type(step) is int:
            # A validation names its step only; a step number is that of equal steps.
            tokens = round((step + 1) * self.last["tokens"] / (self.last["step"] + 1))
        self.events[kind].add({**record, "tokens": tokens or 0})


def _records(lines: Sequence[bytes]) -> Iterable[Record]:
    """Yields what lines hold, as `read_metrics` would."""
    try:
        found = orjson.loads(b"[" + b",".join(lines) + b"]")
    # NaN, half of a surrogate pair, or a torn line somewhere among them.
    except orjson.JSONDecodeError:
        found = [metrics_record(line) for line in lines]
    return (r for r in found if isinstance(r, dict) and has_numbers(r))


def _matrix(records: Sequence[Record]) -> Matrix:
    """Returns [records, STEP_KEYS] with NaN for what is not known."""
    rows = [[record.get(key) for key in STEP_KEYS] for record in records]
    try:
        return np.array(rows, dtype=np.float64)
    # A file that somebody has edited: texts, lists.
    except (TypeError, ValueError):
        kept = [[v if type(v) in (int, float) else np.nan for v in row] for row in rows]
        return np.array(kept, dtype=np.float64)


def _with_seconds(values: Matrix) -> Matrix:
    """Returns the columns of `COLUMNS`, from those of the records."""
    step, tokens, speed, seconds = (
        values[:, STEP_KEYS.index(name)]
        for name in ("step", "tokens", "tokens_per_second", "seconds")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        # An older record has no seconds: those of the step alone.
        alone = tokens / (step + 1) / speed
    whole = np.where(np.isfinite(seconds), seconds, alone)
    parts = [whole * values[:, STEP_KEYS.index(f"{name}_share")] for name in PAUSES]
    return np.column_stack([values, whole, *parts])
