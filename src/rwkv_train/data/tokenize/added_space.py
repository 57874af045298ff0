"""Tokenizers that put a space in front of every text (Llama's and others of SentencePiece)."""

from __future__ import annotations

import json
from typing import Any


def without_added_space(definition: str) -> str | None:
    """Returns a tokenizer.json that adds no space, for text in the midst of a document.

    None when the tokenizer does not add one.
    """
    content = json.loads(definition)
    before = json.dumps(content)
    content["normalizer"] = _normalizer(content.get("normalizer"))
    _adapt(content.get("pre_tokenizer"))
    if json.dumps(content) == before:
        return None
    content["decoder"] = _decoder(content.get("decoder"))
    return json.dumps(content)


def _normalizer(step: Any) -> Any:
    """Returns a normalizer without its steps that prepend."""
    if not isinstance(step, dict):
        return step
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        kept = [entry for entry in step["normalizers"] if entry["type"] != "Prepend"]
        return {**step, "normalizers": kept}
    return step


def _adapt(step: Any) -> None:
    """Switches the space off in a pre-tokenizer or a decoder."""
    if not isinstance(step, dict):
        return
    if step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
    if step["type"] == "ByteLevel":
        step["add_prefix_space"] = False
    for entry in step.get("pretokenizers", []):
        _adapt(entry)


def _decoder(step: Any) -> Any:
    """Returns a decoder that keeps a space at the beginning."""
    if not isinstance(step, dict):
        return step
    if step["type"] == "Sequence":
        kept = [entry for entry in step["decoders"] if not _strips_front(entry)]
        for entry in kept:
            _adapt(entry)
        return {**step, "decoders": kept}
    _adapt(step)
    return step


def _strips_front(step: Any) -> bool:
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"])
