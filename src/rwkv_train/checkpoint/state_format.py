"""The format of training states, in one file or in a folder, and the refusal of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkv_train.errors import CheckpointError

# 2 had no digest, 1 only the moments of Adam.
FORMAT = 3
# Every reader relies on these; the rest may be absent.
REQUIRED = ("format", "step", "weights", "optimizer", "moments", "optimizer_steps")


class StateFormatError(CheckpointError):
    """Raised for an intact state of another format, which is work that nobody may pass over."""


def require_format(path: Path, state: Mapping[str, Any]) -> None:
    """Raises StateFormatError for a state of another format."""
    if state.get("format") != FORMAT:
        raise other_format(path, state)


def require_complete(path: Path, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a state that lacks what every reader relies on."""
    missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise CheckpointError(f"{path} is no training state: it lacks {', '.join(missing)}")


def other_format(path: Path, state: Mapping[str, Any]) -> StateFormatError:
    """Returns the refusal of a state that this version cannot read."""
    found = f"format {state['format']}" if "format" in state else "no format"
    writer = f", written by {state['code_version']}" if "code_version" in state else ""
    return StateFormatError(
        f"{path} has {found}, this version reads format {FORMAT}{writer}; resume with the version "
        "that wrote it, or move the file to another folder to resume from an earlier one. Nothing "
        "was deleted"
    )
