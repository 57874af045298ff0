"""Conversations for tests, and the documents they become, supervised text in brackets."""

from __future__ import annotations

import json

from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.binidx.manifest import read_manifest
from rwkv_train.data.convert.pipeline import ConvertOptions
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.samples.token_sources import open_source, pairs_of

KEPT = Arrangement(shuffle=False)
ROWS = [
    {"messages": [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"}]},
    {"text": "plain"},
    {"prompt": "q", "response": "r"},
    {
        "conversations": [
            {"from": "human", "value": "x"},
            {"from": "gpt", "value": "y"},
            {"from": "human", "value": "z"},
        ]
    },
]
# The documents by hand, supervised text in brackets.
WRITTEN = [
    "User: a\nb\n\nAssistant:[ c\n\n0]",
    "[plain0]",
    "User: q\n\nAssistant:[ r\n\n0]",
    "User: x\n\nAssistant:[ y\n\n]User: z\n\n0",
]


def rows_file(folder, rows=ROWS, name="in.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def options(folder, rows=ROWS, **changes):
    given = {
        "tokenizer": "bytes",
        "prefix": str(folder / "out"),
        "arrangement": KEPT,
        "chat_template": "world",
    } | changes
    return ConvertOptions([rows_file(folder, rows)], **given)


def written(prefix):
    """The documents of a bytes-tokenized data set, supervised text in brackets, 0 at the end."""
    source = open_source(str(prefix), "binidx")
    pairs = pairs_of(source)
    mask = find_mask(str(prefix), pairs, read_manifest(prefix))
    found, offset = [], 0
    for pair in pairs:
        for number in range(pair.item_count):
            ids = pair.item(number).tolist()
            weights = [0, *mask.get(offset, len(ids)).tolist(), 0]
            offset += len(ids)
            text = ""
            for i, token in enumerate(ids):
                before, weight, after = weights[i : i + 3]
                text += "[" * (weight > 0 and before == 0)
                text += chr(token - 1) if token else "0"
                text += "]" * (weight > 0 and (after == 0 or i + 1 == len(ids)))
            found.append(text)
    return found
