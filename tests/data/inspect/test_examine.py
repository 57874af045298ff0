"""Inspecting and verifying finished data: what is right is said, whatever is wrong is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rwkv_train.data.binidx.manifest import read_manifest, write_manifest
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.inspect.examine import inspect, verify
from rwkv_train.data.inspect.lengths import describe_lengths, draw_lengths, length_histogram
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.errors import DataError
from tests.data.corpora import write_jsonl

TEXTS = ["first", "x" * 60, "好", ""]


def made(folder, **changes):
    given = {"arrangement": Arrangement(shuffle=False), "tokenizer": "bytes"} | changes
    prefix = str(folder / "out")
    convert(ConvertOptions([write_jsonl(folder, TEXTS)], prefix, **given))
    return prefix


def rewrite(prefix, items, **changes):
    """Replaces the tokens and makes the manifest fit, but for `changes`."""
    manifest = read_manifest(prefix)
    with BinidxWriter(prefix, "uint16") as writer:
        for item in items:
            writer.append(item)
    honest = {"tokens": writer.tokens, "documents": writer.documents, "sha256_bin": writer.sha256}
    write_manifest(prefix, replace(manifest, **(honest | changes)))


@pytest.mark.parametrize("shard_tokens", [None, 10])
def test_inspecting_tells_header_counts_lengths_and_documents(shard_tokens, tmp_path):
    text = inspect(made(tmp_path, shard_tokens=shard_tokens))
    assert "version 1, type uint16 (code 8)" in text
    assert "out: 4 documents, 72 tokens" in text
    assert "tokens per document: median 5, mean 18.0, largest 61" in text
    assert "manifest: fits; tokenizer bytes, vocab_size 257" in text
    assert "first document (6 tokens): 'first'" in text
    assert "last document (1 tokens): ''" in text


def test_a_pair_without_a_manifest_is_inspected_too(tmp_path):
    with BinidxWriter(tmp_path / "foreign", "int32") as writer:
        writer.append([70000, 3])
        writer.append([4], continues=True)
    text = inspect(str(tmp_path / "foreign"))
    assert "type int32 (code 4), 2 items, 2 document boundaries, 3 tokens" in text
    assert "foreign: 1 documents, 3 tokens" in text
    assert "manifest: none" in text
    with pytest.raises(DataError, match="no manifest; there is nothing to compare"):
        verify(str(tmp_path / "foreign"))


@pytest.mark.parametrize("shard_tokens", [None, 10])
def test_sound_data_is_verified(shard_tokens, tmp_path):
    prefix = made(tmp_path, shard_tokens=shard_tokens)
    assert "are right; 4 documents decoded" in verify(prefix)
    assert "are right; 0 documents decoded" in verify(prefix, "none")


def test_every_changed_byte_of_the_tokens_is_found(tmp_path):
    prefix = made(tmp_path)
    path = tmp_path / "out.bin"
    sound = path.read_bytes()
    for at in range(0, len(sound), 7):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        with pytest.raises(DataError, match="sha256 differs"):
            verify(prefix)


@pytest.mark.parametrize(
    ("items", "changes", "message"),
    [
        ([[98, 0], [98]], {}, "not every document ends with 0 and has no 0 within"),
        ([[98, 0, 98, 0]], {}, "not every document ends with 0 and has no 0 within"),
        ([[98, 300, 0]], {}, "ids reach from 0 to 300, outside the vocabulary of 257"),
        ([[98, 0], [200, 0]], {}, "document 1: the tokens do not decode to UTF-8"),
        ([[98, 0]], {"documents": 2}, "holds 1 documents but its manifest says 2"),
        ([[98, 0]], {"dtype": "int16"}, "says uint16 but .* int16"),
        ([[98, 0]], {"tokens": 5}, r"describes 5 tokens \(10 bytes\)"),
    ],
)
def test_data_that_is_not_what_it_should_be_is_refused(items, changes, message, tmp_path):
    prefix = made(tmp_path)
    rewrite(prefix, items, **changes)
    with pytest.raises(DataError, match=message):
        verify(prefix)


def test_ids_that_the_tokenizer_would_not_choose_are_found(tmp_path):
    prefix = made(tmp_path, tokenizer="world")
    # "a" twice, where the vocabulary has the longer token "aa".
    rewrite(prefix, [[98, 98, 0]])
    with pytest.raises(DataError, match="document 0: the text is encoded differently"):
        verify(prefix)


def test_an_index_with_changed_pointers_is_refused_where_items_matter(tmp_path):
    prefix = made(tmp_path)
    path = tmp_path / "out.idx"
    content = bytearray(path.read_bytes())
    # Pointer of item 1, after the header and four sizes.
    content[34 + 16 + 8] += 2
    path.write_bytes(content)
    for look in (inspect, verify):
        with pytest.raises(DataError, match="items do not lie one after another"):
            look(prefix)


def test_the_histogram_counts_documents_and_tokens_by_powers_of_two():
    documents, tokens = length_histogram(np.array([1, 2, 3, 4, 7, 8, 1000], np.int32))
    assert documents.tolist() == [1, 2, 2, 1, 0, 0, 0, 0, 0, 1]
    assert tokens.tolist() == [1, 5, 11, 8, 0, 0, 0, 0, 0, 1000]
    text = describe_lengths(np.array([4, 7, 8, 8, 9], np.int32))
    assert [line.split()[-1].count("#") for line in text.splitlines()[1:]] == [27, 40]


def test_the_lengths_are_drawn(tmp_path):
    draw_lengths(tmp_path / "lengths.png", np.array([1, 5, 700], np.int32), "data")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert len(file_sha256(tmp_path / "lengths.png")) == 64
    with pytest.raises(DataError, match="cannot write"):
        draw_lengths(tmp_path / "missing" / "x.png", np.array([1], np.int32), "data")
