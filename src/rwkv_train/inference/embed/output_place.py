"""The files that `rwkv-embed` writes, none of which may exist."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.errors import ConfigError

_ENDINGS = (".npy", ".jsonl")


def is_json_lines(output: Path) -> bool:
    """Tells whether the vectors become lines of JSON, as the name says."""
    return output.suffix == ".jsonl"


def facts_path(output: Path) -> Path:
    """Returns the file beside the vectors that says how they were made."""
    return output.with_name(f"{output.name}.json")


def center_path(output: Path) -> Path:
    """Returns the file beside the vectors for the mean that was taken off them."""
    return output.with_name(f"{output.name}.center.npy")


def require_output_place(output: Path, *, with_center: bool) -> None:
    """Raises ConfigError unless the vectors can be written there without loss of another file."""
    if output.suffix not in _ENDINGS:
        raise ConfigError(f"--output {output} must end in {' or '.join(_ENDINGS)}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: {output.parent} is no folder; create it first")
    paths = [output, facts_path(output), *([center_path(output)] if with_center else [])]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists and is not written over; choose another --output")
