"""Corpora for tests, and their way through a conversion: texts, input files, options, documents.

Synthetic documents are seeded, of very different lengths, some twice, some not ASCII.
"""

from __future__ import annotations

import json
import random
from dataclasses import fields

from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.pipeline import ConvertOptions
from rwkv_train.data.convert.select import Arrangement

_WORDS = ["the", "state", "of", "time mix", "decays", "é", "好", "слово", "😀", "\n", "\t", "x[i]"]
ARRANGEMENT = Arrangement(repeats=2, seed=7, validation=0.2, dedup=True, min_tokens=3)


def random_texts(megabytes, seed=1):
    """Texts of about that size together."""
    generator, size, earlier = random.Random(seed), 0, []
    while size < megabytes * 1e6:
        text = " ".join(generator.choices(_WORDS, k=int(2 ** generator.uniform(0, 12))))
        if earlier and generator.random() < 0.1:
            text = generator.choice(earlier)
        earlier.append(text)
        size += len(json.dumps({"text": text})) + 1
        yield text


def write_random_jsonl(path, megabytes, seed=1):
    """The path of a jsonl of about that size."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in random_texts(megabytes, seed))
    path.write_text(content, encoding="utf-8")
    return path


def write_jsonl(folder, texts, name="in.jsonl"):
    """The name of a jsonl of those texts."""
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def options_for(folder, texts, **changes):
    """Options for those texts; single letters are one token each in the bytes vocabulary."""
    given = {"tokenizer": "bytes", "prefix": str(folder / "out")} | changes
    names = {field.name for field in fields(Arrangement)} & given.keys()
    arrangement = Arrangement(**{name: given.pop(name) for name in names})
    return ConvertOptions([write_jsonl(folder, texts)], arrangement=arrangement, **given)


def arranged_options(folder, **changes):
    """Options that arrange the folder's in.jsonl (random texts unless it exists) in every way."""
    path = folder / "in.jsonl"
    if not path.exists():
        write_random_jsonl(path, megabytes=0.1)
    given = {"tokenizer": "bytes", "arrangement": ARRANGEMENT} | changes
    return ConvertOptions([str(path)], str(folder / "out"), **given)


def documents_of(prefix):
    """Texts of a bytes-tokenized pair, every item's final 0 checked and removed."""
    pair = Binidx(prefix)
    items = [pair.item(i).tolist() for i in range(pair.item_count)]
    assert all(item[-1] == 0 and 0 not in item[:-1] for item in items)
    return ["".join(chr(i - 1) for i in item[:-1]) for item in items]
