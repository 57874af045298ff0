"""Document starts: from the index wherever it is, from zeros elsewhere, refused where unknown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.binidx.layout import HEADER
from rwkv_train.data.binidx.manifest import Manifest, Shard, joint_sha256, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset
from rwkv_train.data.samples.document_starts import document_starts
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.errors import DataError


def write(prefix, items):
    """items: (length, continues the document before)."""
    with BinidxWriter(prefix, "uint16") as writer:
        for length, continues in items:
            writer.append(np.ones(length, int), continues=continues)


def starts_by_hand(items):
    """True at the first token of every document that has one."""
    found, at = [], 0
    for length, continues in items:
        if not continues:
            found.append(at)
        at += length
    return [i in found for i in range(at)]


def test_starts_are_where_the_index_says(tmp_path):
    # Documents of 3 + 2, 1, 0 and 4 tokens.
    items = [(3, False), (2, True), (1, False), (0, False), (4, False)]
    write(tmp_path / "d", items)
    starts = document_starts(Binidx(tmp_path / "d"))
    assert starts.among(0, 10).tolist() == [True, *[False] * 4, True, True, *[False] * 3]
    assert starts.among(5, 2).tolist() == [True, True]
    assert starts.among(1, 4).tolist() == [False] * 4


@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12),
    cut=st.integers(1, 11),
)
def test_every_window_of_pairs_and_shards_agrees_with_a_scan(lengths, cut, tmp_path_factory):
    items = [
        (length, continues and i not in (0, cut))
        for i, (length, continues) in enumerate([(1, False), *lengths])
    ]
    parts = [part for part in (items[:cut], items[cut:]) if sum(n for n, _ in part)]
    folder = tmp_path_factory.mktemp("starts")
    described = []
    for number, part in enumerate(parts):
        write(folder / f"s-{number}", part)
        documents = sum(not continues for _, continues in part)
        described.append(Shard(f"s-{number}", sum(n for n, _ in part), documents, "x"))
    tokens = sum(shard.tokens for shard in described)
    write_manifest(
        folder / "s",
        Manifest(
            "bytes",
            257,
            tokens,
            sum(s.documents for s in described),
            "uint16",
            joint_sha256(described),
            shards=tuple(described),
        ),
    )
    starts = document_starts(open_source(str(folder / "s"), "binidx"))
    expected = [start for part in parts for start in starts_by_hand(part)]
    for offset in range(tokens):
        for length in (1, 3, tokens - offset):
            if offset + length <= tokens:
                assert starts.among(offset, length).tolist() == expected[offset : offset + length]


def test_a_flat_format_starts_documents_behind_zeros(tmp_path):
    np.save(tmp_path / "flat.npy", np.array([5, 0, 6, 7, 0, 0, 8], np.uint16))
    starts = document_starts(open_source(str(tmp_path / "flat.npy"), "numpy"))
    assert starts.among(0, 7).tolist() == [True, False, True, False, False, True, True]
    assert starts.among(2, 3).tolist() == [True, False, False]
    assert starts.among(0, 1).tolist() == [True]


def test_a_text_of_characters_is_refused():
    with pytest.raises(DataError, match="does not say where documents start"):
        document_starts(open_source(None, "dummy"))


def test_an_index_without_documents_is_refused(tmp_path):
    write(tmp_path / "d", [(3, False), (2, False)])
    path = tmp_path / "d.idx"
    content = bytearray(path.read_bytes())
    at = HEADER.size + 12 * 2
    content[at:] = np.array([0, 1, 1], "<i8").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d.idx does not say where documents start \(3 boundaries"):
        document_starts(Binidx(tmp_path / "d"))


def test_items_in_disorder_are_told(tmp_path):
    write(tmp_path / "d", [(3, False), (3, False), (3, False)])
    path = tmp_path / "d.idx"
    content = bytearray(path.read_bytes())
    at = HEADER.size + 4 * 3
    content[at : at + 24] = np.array([0, 100, 12], "<i8").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="its items do not lie one after another"):
        document_starts(Binidx(tmp_path / "d")).among(1, 5)


def test_samples_carry_the_starts_of_their_inputs(tmp_path):
    write(tmp_path / "d", [(5, False)] * 12)
    source = Binidx(tmp_path / "d")
    starts = document_starts(source)
    data = TokenDataset(source, 7, Permutation(5), starts=starts)
    for n in range(1, 6):
        offset = data.offset(n)
        assert data[n].reset.tolist() == [(offset + t) % 5 == 0 for t in range(7)]
    held_out = ValidationDataset(source, 7, [0, 52], starts=starts)
    assert held_out[0].reset.tolist() == [True, *[False] * 4, True, False]
    assert TokenDataset(source, 7, Permutation(5))[1].reset is None
