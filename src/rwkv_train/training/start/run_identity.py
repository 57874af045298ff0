"""proj_dir/starts.jsonl: one JSON object per start of a run, with the random id of the run.

States carry the id too, so that a state of another run in the folder is noticed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rwkv_train.machine_record import machine_record
from rwkv_train.report.run_records import STARTS_FILE, read_starts
from rwkv_train.training.start.resume_point import Fresh, FromState, FromWeights, ResumePoint
from rwkv_train.version import code_version


def folder_run(folder: Path) -> str | None:
    """Returns the id of the run that the folder holds; None: it does not tell."""
    runs = [record["run"] for record in read_starts(folder) if isinstance(record.get("run"), str)]
    return runs[-1] if runs else None


def run_id(point: ResumePoint, folder: Path) -> str:
    """Returns the id of the run that starts at `point` in `folder`, a new one for a new run."""
    known = None
    if isinstance(point, FromState):
        known = point.state.get("run") or folder_run(folder)
    elif isinstance(point, FromWeights) and point.epoch >= 0:
        # Its states are lost, and it is the same run all the same.
        known = folder_run(folder)
    return known or uuid.uuid4().hex


def start_record(run: str, point: ResumePoint, step: int, tokens: int) -> dict[str, Any]:
    """Returns the record of a start after `step` steps, which had read `tokens` tokens."""
    return {
        "run": run,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "from": "" if isinstance(point, Fresh) else point.path.name,
        "step": step,
        "tokens": tokens,
        "changes": [change.text for change in point.changes],
        "labels": [change.label for change in point.changes if change.label],
        "machine": machine_record(),
    }


def append_start(folder: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to starts.jsonl. Raises OSError."""
    with (folder / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
