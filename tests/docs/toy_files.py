"""The files that a reader of the tutorials has: texts, conversations, published models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from tests.checkout import ROOT
from tests.models.tiny import tiny_model

SENTENCE = "the state of a network that reads one token after another keeps what it needs"
WORDS = SENTENCE.split()
# Published models by the names that their author gave them; toys of the same kind here.
WORLD_MODEL = "RWKV-x070-World-0.4B-v2.9-20250107-ctx4096.pth"
SMALL_MODEL = "base.pth"


def text(number: int, words: int = 60) -> str:
    """Returns a document that is like the others and equals none of them."""
    picked = [WORDS[(number * k + k * k) % len(WORDS)] for k in range(1, words)]
    return f"Chapter {number}: {' '.join(picked)}."


def _rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _texts(path: Path) -> None:
    first = {"text": "The first document.\nIts second line."}
    _rows(path, [first, *({"text": text(n)} for n in range(200))])


def _books(path: Path) -> None:
    _rows(path, [{"text": " ".join(text(n * 40 + k) for k in range(40))} for n in range(5)])


def _chats(path: Path) -> None:
    def row(question: str, answer: str) -> dict[str, object]:
        told = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": told}

    first = row("What is RWKV?", "An RNN that trains in parallel like a transformer.")
    second = {"instruction": "Name a colour.", "output": "Blue."}
    _rows(path, [first, second, *(row(text(n, 8), text(n + 1, 12)) for n in range(100))])


def _model(path: Path, vocab_size: int, width: int) -> None:
    torch.save(_weights(vocab_size, width), path)


@cache
def _weights(vocab_size: int, width: int) -> dict[str, torch.Tensor]:
    model = tiny_model("7", n_embd=width, head_size=width, vocab_size=vocab_size)
    return {name: value.bfloat16() for name, value in model.state_dict().items()}


MAKERS: dict[str, Callable[[Path], None]] = {
    "my.jsonl": _texts,
    "chats.jsonl": _chats,
    "books.jsonl": _books,
    WORLD_MODEL: lambda path: _model(path, 65536, 32),
    SMALL_MODEL: lambda path: _model(path, 257, 64),
}


def prepare(folder: Path, page: str) -> None:
    """Makes the files that the text of a page names, beside the checkout's configs."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, make in MAKERS.items():
        if name in page:
            make(folder / name)
