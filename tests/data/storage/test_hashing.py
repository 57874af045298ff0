"""Digests: in the background as in the foreground, and of files."""

from __future__ import annotations

import hashlib

import pytest

from rwkv_train.data.storage.hashing import BackgroundSha256, file_sha256
from rwkv_train.errors import DataError


@pytest.mark.parametrize("sizes", [[], [0], [10], [1 << 20, 3, 1 << 19, 0, 1 << 18, 1]])
def test_a_digest_in_the_background_is_that_of_all_content_in_order(sizes):
    parts = [bytes([i]) * size for i, size in enumerate(sizes)]
    digest = BackgroundSha256()
    for part in parts:
        digest.update(part)
    assert digest.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_file_longer_than_a_block_has_the_digest_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 4096 + b"rest"
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone: No such file"):
        file_sha256(tmp_path / "gone")
