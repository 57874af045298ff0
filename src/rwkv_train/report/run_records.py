"""Reads the files of records that a run keeps in its folder, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
STARTS_FILE = "starts.jsonl"
# How long starting and ending took. Not in metrics.jsonl, whose lines people read as steps.
TIMES_FILE = "times.jsonl"
# What a run was predicted to take.
PLAN_FILE = "plan.json"
# What a reader adds and compares.
NUMBERS = ("step", "tokens", "loss", "lr", "val_loss")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns all complete records of a folder's metrics.jsonl, in order; [] without the file."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for record in map(metrics_record, lines) if record is not None]


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of the steps that were taken, in order; [] without the file."""
    return [record for record in read_metrics(folder) if "loss" in record]


def metrics_record(line: str | bytes) -> dict[str, Any] | None:
    """Returns what a line holds; None for the torn line of a killed run, or for no record of ours.

    Numbers stand where numbers belong in what it returns.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and has_numbers(record) else None


def has_numbers(record: dict[str, Any]) -> bool:
    """Tells whether numbers stand where numbers belong."""
    found = [record[name] for name in NUMBERS if name in record]
    return all(type(value) in (int, float) for value in found)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a folder's starts.jsonl, in order; what cannot be read is left out."""
    return objects_in(folder / STARTS_FILE)


def read_times(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a folder's times.jsonl, in order; what cannot be read is left out."""
    return [record for record in objects_in(folder / TIMES_FILE) if has_numbers(record)]


def objects_in(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, one a line; those that cannot be read are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            # The torn last line of a killed run.
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def change_marks(folder: Path) -> list[tuple[int, str]]:
    """Returns (tokens, label) of every start with changes, as far as the curve follows it."""
    marks: list[tuple[int, str]] = []
    for record in read_starts(folder):
        tokens, labels = record.get("tokens"), record.get("labels")
        if not isinstance(tokens, int) or not isinstance(labels, list):
            continue
        # What a start behind this place had changed was left when the run went back.
        marks = [mark for mark in marks if mark[0] < tokens]
        if labels:
            marks.append((tokens, ", ".join(map(str, labels))))
    return marks
