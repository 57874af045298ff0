"""Reading documents in any order: over the borders of files, and with weights."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_train.data.binidx import document_reader
from rwkv_train.data.binidx.document_reader import DocumentReader, read_weighted
from rwkv_train.data.storage.open_files import StoredFile
from rwkv_train.errors import DataError

DTYPE = np.dtype("<u2")


@pytest.fixture
def reader(tmp_path):
    """Six documents, the fourth empty, over three files, the second empty; token i at place i."""
    counts = (4, 0, 7)
    files, first = [], 0
    for number, count in enumerate(counts):
        np.arange(first, first + count, dtype=DTYPE).tofile(tmp_path / str(number))
        files.append(StoredFile(tmp_path / str(number)) if count else None)
        first += count
    return DocumentReader(DTYPE, files, counts, np.array([1, 2, 3, 0, 4, 1], np.int32))


def test_documents_come_in_the_order_asked_for(reader):
    order = np.array([2, 5, 0, 3, 4])
    ((tokens, sizes),) = reader.read(order)
    assert sizes.tolist() == [3, 1, 1, 0, 4]
    assert tokens.tolist() == [3, 4, 5, 10, 0, 6, 7, 8, 9]


def test_batches_divide_the_documents_but_never_one(reader, monkeypatch):
    monkeypatch.setattr(document_reader, "_BATCH_TOKENS", 3)
    batches = list(reader.read(np.arange(6)))
    assert np.concatenate([sizes for _, sizes in batches]).tolist() == [1, 2, 3, 0, 4, 1]
    assert np.concatenate([tokens for tokens, _ in batches]).tolist() == list(range(11))
    assert all(len(tokens) == sizes.sum() for tokens, sizes in batches) and len(batches) > 2


def test_a_missing_mask_weighs_every_token_once(reader):
    weights = DocumentReader(np.dtype(np.uint8), [None], [11], reader.sizes)
    (batch,) = read_weighted(reader, weights, np.array([4, 1]))
    assert batch.tokens.tolist() == [6, 7, 8, 9, 1, 2] and batch.weights.tolist() == [1] * 6
    (plain,) = read_weighted(reader, None, np.array([4, 1]))
    assert plain.weights is None


def test_a_file_that_has_shrunk_is_noticed(reader, tmp_path):
    (tmp_path / "2").write_bytes(b"")
    with pytest.raises(DataError, match="was cut off from 14 to 0 bytes"):
        list(reader.read(np.array([4])))
