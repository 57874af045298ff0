"""Kills a conversion before each of its file operations and says what was left; a program.

    python -m tests.data.kill_points FOLDER OLD NEW

OLD and NEW are names of `MADE`. FOLDER gets the finished data of both in old/ and new/. Then, for
every file operation of making NEW over OLD, a child process makes it and is killed right before
that operation. Printed is JSON: for each point what could be read, and what running again did.
It is a program of its own, because it forks, which a process with threads should not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.binidx.manifest import read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.samples.token_sources import open_source, pairs_of
from rwkv_train.errors import DataError
from tests.killed_work import kill_before, work_until

OPERATIONS = [
    (os, "replace"),
    (os, "rename"),
    (os, "unlink"),
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
]
# seed, tokens a shard (None: one pair), and the template of data with a loss mask
MADE = {
    "one": (1, None, None),
    "shards": (2, 40, None),
    "smaller": (3, 25, None),
    "equal": (4, 40, None),
    "masked": (5, None, "world"),
    "remasked": (6, None, "world"),
    "masked shards": (7, 60, "world"),
}


def options(made: str, corpus: Path, prefix: Path) -> ConvertOptions:
    """How to make it, from this process alone."""
    seed, shard_tokens, chat_template = MADE[made]
    return ConvertOptions(
        [str(corpus)],
        str(prefix),
        Arrangement(seed=seed, validation=0.2),
        tokenizer="bytes",
        workers=1,
        shard_tokens=shard_tokens,
        overwrite=True,
        chat_template=chat_template,
    )


def readable(prefix: Path) -> list[int] | str:
    """All tokens and their weights, or the message that refuses them."""
    try:
        source = open_source(str(prefix), "binidx")
        mask = find_mask(str(prefix), pairs_of(source), read_manifest(prefix))
    except DataError as error:
        return str(error)
    weights = [] if mask is None else mask.get(0, mask.tokens).tolist()
    return source.get(0, source.tokens).tolist() + weights


def pairs(folder: Path) -> dict[str, list[int]]:
    """Tokens and weights of every pair that can be opened by itself."""
    found = {}
    for index in sorted(folder.glob("*.idx")):
        try:
            pair = Binidx(index.with_suffix(""))
            mask = find_mask(pair.prefix, [pair], None)
        except DataError:
            continue
        weights = [] if mask is None else mask.get(0, mask.tokens).tolist()
        found[index.stem] = pair.get(0, pair.tokens).tolist() + weights
    return found


def contents(folder: Path) -> dict[str, str]:
    """Every file that is not a leftover, as text."""
    return {p.name: p.read_bytes().hex() for p in folder.iterdir() if p.suffix != ".partial"}


def main(folder: Path, old: str, new: str) -> None:
    """See above."""
    # A kill loses nothing that was written, so waiting for the disk would only take time.
    os.fsync = lambda descriptor: None
    corpus = folder / "in.jsonl"
    # Texts, or with a template questions and answers.
    rows = ({"text": f"document {i}", "prompt": f"{i}", "response": "yes"} for i in range(8))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, made in (("old", old), ("new", new)):
        convert(options(made, corpus, folder / name / "out"))
    place = folder / "place"
    wanted = options(new, corpus, place / "out")
    shutil.copytree(folder / "old", place)
    operations = work_until(partial(convert, wanted), OPERATIONS, None)
    points = []
    for number in range(1, operations + 1):
        shutil.rmtree(place)
        shutil.copytree(folder / "old", place)
        kill_before(partial(convert, wanted), OPERATIONS, number)
        left = {p: readable(place / p) for p in ("out", "out_val")}
        alone = pairs(place)
        convert(wanted)
        points.append({"left": left, "pairs": alone, "again": contents(place)})
    whole = {
        name: {
            "left": {p: readable(folder / name / p) for p in ("out", "out_val")},
            "pairs": pairs(folder / name),
            "again": contents(folder / name),
        }
        for name in ("old", "new")
    }
    print(json.dumps({"points": points, **whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
