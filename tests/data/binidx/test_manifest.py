"""The manifest: written and read back, absent, damaged, or of other data."""

from __future__ import annotations

import hashlib
import json

import pytest

from rwkv_train.data.binidx.manifest import Manifest, manifest_path, read_manifest, write_manifest
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.errors import DataError

MANIFEST = Manifest("world", 65536, 3, 1, "uint16", "ab" * 32, {"seed": 4, "input": "ä"})


def test_a_manifest_is_read_back_as_written(tmp_path):
    write_manifest(tmp_path / "data.v1", MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["data.v1.manifest.json"]
    assert read_manifest(tmp_path / "data.v1") == MANIFEST


def test_a_pair_without_a_manifest_has_none(tmp_path):
    assert read_manifest(tmp_path / "data") is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"tokenizer": "world"}', b"\xff", b"3"])
def test_a_damaged_manifest_is_refused(content, tmp_path):
    manifest_path(tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged .* remove it"):
        read_manifest(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("vocab_size", value) for value in (10**12, 10**400, 0, -1, 1.5, "x" * 5000, None, True)),
        *(("bytes_per_token", value) for value in (-1, float("nan"), float("inf"), "x")),
        *(("tokens", value) for value in (-1, "x", [], None)),
        *(("shards", value) for value in (5, [5], [[]], {})),
    ],
)
def test_impossible_values_are_refused_in_a_short_line(name, value, tmp_path):
    write_manifest(tmp_path / "data", MANIFEST)
    path = manifest_path(tmp_path / "data")
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(DataError, match=r"manifest\.json is damaged .* remove it") as refused:
        read_manifest(tmp_path / "data")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_manifest_of_other_data_is_refused(tmp_path):
    with BinidxWriter(tmp_path / "data", "uint16") as writer:
        writer.append([1, 2, 3, 0])
    write_manifest(tmp_path / "data", MANIFEST)
    with pytest.raises(DataError, match=r"describes 3 tokens \(6 bytes\) but .* has 8 bytes"):
        read_manifest(tmp_path / "data")


def test_unknown_entries_of_a_later_version_are_ignored(tmp_path):
    write_manifest(tmp_path / "data", MANIFEST)
    path = manifest_path(tmp_path / "data")
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    assert read_manifest(tmp_path / "data") == MANIFEST


def test_a_digest_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
