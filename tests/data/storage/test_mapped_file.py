"""Mapped files, and an error where a file is cut off under a run."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pytest

import make_data
from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.samples.document_starts import document_starts
from rwkv_train.data.samples.token_sources import open_source, pairs_of
from rwkv_train.data.storage.mapped_file import MappedFile
from rwkv_train.errors import DataError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """100 shards of ten tokens each, and a loss mask of ones."""
    (tmp_path / "a.jsonl").write_text('{"text": "abcdefghi"}\n' * 100)
    options = ["--tokenizer", "bytes", "--shard_tokens", "10", "-o", str(tmp_path / "a")]
    assert make_data.main([str(tmp_path / "a.jsonl"), "1", "16", *options]) == 0
    for path in tmp_path.glob("*.bin"):
        path.with_suffix(".mask").write_bytes(b"\1" * 10)
    return tmp_path / "a"


@pytest.mark.parametrize("ending", [".bin", ".idx", ".mask"])
def test_a_part_that_is_cut_off_under_a_reader_is_named(shards: Path, ending: str):
    source = open_source(str(shards), "binidx")
    starts = document_starts(source)
    mask = find_mask(str(shards), pairs_of(source), None)
    path = shards.with_name(f"a-00003{ending}")
    os.truncate(path, 0)

    def read() -> None:
        source.get(0, 1000)
        starts.among(0, 1000)
        mask.get(0, 1000)

    with pytest.raises(DataError, match=rf"{path.name} was cut off from \d+ to 0 bytes"):
        read()


@pytest.mark.parametrize("kind", ["numpy", "uint16"])
def test_an_array_that_is_cut_off_under_a_reader_is_named(tmp_path: Path, kind: str):
    path, tokens = tmp_path / "tokens.npy", np.arange(100_000, dtype=np.uint16)
    if kind == "numpy":
        np.save(path, tokens)
    else:
        tokens.tofile(path)
    source = open_source(str(path), kind)
    assert source.get(90_000, 5).tolist() == tokens[90_000:90_005].tolist()
    os.truncate(path, 100)
    with pytest.raises(DataError, match="was cut off"):
        source.get(90_000, 5)


def test_a_file_that_is_replaced_or_removed_is_read_on(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old content")
    mapped = MappedFile(path)
    (tmp_path / "b").write_bytes(b"new")
    (tmp_path / "b").replace(path)
    mapped.require_whole()
    path.unlink()
    mapped.require_whole()
    assert bytes(mapped.content) == b"old content"


def test_a_map_cannot_be_written_and_ends_with_its_last_view(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    mapped = MappedFile(tmp_path / "a")
    with pytest.raises(ValueError, match="read-only"):
        mapped.content[0] = 0
    view = mapped.content[2:]
    memory = weakref.ref(mapped.content.base)
    del mapped
    assert bytes(view) == b"ntent" and memory() is not None
    del view
    assert memory() is None
