"""Synthetic documents for tests: seeded, of very different lengths, some twice, some not ASCII."""

from __future__ import annotations

import json
import random

_WORDS = ["the", "state", "of", "time mix", "decays", "é", "好", "слово", "😀", "\n", "\t", "x[i]"]


def texts(megabytes, seed=1):
    """Texts of about that size together."""
    generator, size, earlier = random.Random(seed), 0, []
    while size < megabytes * 1e6:
        text = " ".join(generator.choices(_WORDS, k=int(2 ** generator.uniform(0, 12))))
        if earlier and generator.random() < 0.1:
            text = generator.choice(earlier)
        earlier.append(text)
        size += len(json.dumps({"text": text})) + 1
        yield text


def write_jsonl(path, megabytes, seed=1):
    """The path of a jsonl of about that size."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts(megabytes, seed))
    path.write_text(content, encoding="utf-8")
    return path
