"""A small pair of bytes to train on; what it says does not matter, because no kernel reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from make_data import main as make_data

DOCUMENTS = 200


def make_pair(folder: Path) -> Path:
    """Writes a pair and its _val pair into the folder and returns the prefix."""
    source = folder / "text.jsonl"
    lines = [json.dumps({"text": f"document {i}, {i * i}, {i**3}" * 3}) for i in range(DOCUMENTS)]
    source.write_text("\n".join(lines), encoding="utf-8")
    prefix = folder / "text"
    options = ("--tokenizer", "bytes", "--seed", "3", "--validation", "0.1")
    assert make_data([str(source), "1", "32", "--output", str(prefix), *options]) == 0
    return prefix


def with_mask(prefix: Path) -> Path:
    """Returns the prefix of a copy of the pair with a mask, made at the first call."""
    copy = prefix.with_name("masked")
    mask = Path(f"{copy}.mask")
    if not mask.exists():
        for ending in ("bin", "idx", "manifest.json"):
            shutil.copy(f"{prefix}.{ending}", f"{copy}.{ending}")
        # The small pair holds two bytes a token.
        tokens = Path(f"{prefix}.bin").stat().st_size // 2
        mask.write_bytes((np.arange(tokens) % 3 > 0).astype(np.uint8).tobytes())
    return copy
