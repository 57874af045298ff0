"""A small pair of bytes to train on; what it says does not matter, because no kernel reads it."""

from __future__ import annotations

import json
from pathlib import Path

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
