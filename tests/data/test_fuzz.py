"""Damaged files: nothing but a DataError, and no tokens other than those that were written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from rwkv_train.data.binidx.manifest import (
    Manifest,
    joint_sha256,
    manifest_path,
    read_manifest,
    write_manifest,
)
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.inspect.examine import inspect
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError

# Below 2^15: an int16 reading of the same bytes gives the same ids.
ITEMS = [[7, 8, 0], [300, 0], [0], [*range(1, 40), 0]]
TOKENS = [token for item in ITEMS for token in item]
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Prefix of a sound pair, and its files' contents."""
    prefix = tmp_path_factory.mktemp("fuzz") / "data"
    with BinidxWriter(prefix, "uint16") as writer:
        for item in ITEMS:
            writer.append(item)
    contents = {e: Path(f"{prefix}.{e}").read_bytes() for e in ("bin", "idx")}
    manifest = Manifest("bytes", 257, writer.tokens, 4, "uint16", writer.sha256)
    return prefix, contents, manifest


# Cuts, additions, and a few changed bytes anywhere (the header is as likely as all the rest).
CHANGES = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 200), st.binary(max_size=0)),
    st.tuples(st.just("add"), st.integers(0, 0), st.binary(min_size=1, max_size=9)),
    st.tuples(
        st.just("put"), st.integers(0, 40) | st.integers(0, 200), st.binary(min_size=1, max_size=8)
    ),
)


def damaged(content, change):
    kind, at, new = change
    if kind == "cut":
        return content[:at]
    if kind == "add":
        return content + new
    return (content[:at] + new + content[at + len(new) :])[: max(len(content), at)]


@FUZZ
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_a_damaged_index_gives_the_tokens_that_were_written_or_an_error(pair, changes):
    prefix, contents, _ = pair
    content = contents["idx"]
    for change in changes:
        content = damaged(content, change)
    manifest_path(prefix).unlink(missing_ok=True)
    Path(f"{prefix}.bin").write_bytes(contents["bin"])
    Path(f"{prefix}.idx").write_bytes(content)
    with contextlib.suppress(DataError):
        source = open_source(str(prefix), "binidx")
        assert source.get(0, source.tokens).tolist() == TOKENS
    with contextlib.suppress(DataError):
        inspect(str(prefix))
        found = Binidx(prefix)
        assert sum(found.sizes.tolist()) == len(TOKENS)


@FUZZ
@given(st.integers(0, 200), st.binary(max_size=4))
def test_a_bin_of_another_size_is_refused(pair, size, more):
    prefix, contents, manifest = pair
    write_manifest(prefix, manifest)
    content = contents["bin"][:size] + more
    Path(f"{prefix}.idx").write_bytes(contents["idx"])
    Path(f"{prefix}.bin").write_bytes(content)
    if len(content) != len(contents["bin"]):
        with pytest.raises(DataError):
            open_source(str(prefix), "binidx")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = [
    "tokenizer",
    "vocab_size",
    "tokens",
    "documents",
    "dtype",
    "sha256_bin",
    "made_from",
    "shards",
    "magic_primes",
    "bytes_per_token",
]


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1), st.binary(max_size=3))
def test_a_damaged_manifest_is_refused_or_read_as_it_stands(pair, values, junk):
    prefix, contents, manifest = pair
    for ending, content in contents.items():
        Path(f"{prefix}.{ending}").write_bytes(content)
    write_manifest(prefix, manifest)
    path = manifest_path(prefix)
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | values).encode() + junk)
    with contextlib.suppress(DataError):
        found = read_manifest(prefix)
        assert isinstance(found.bytes_per_token, float | int | None)
        assert isinstance(found.vocab_size, int) and isinstance(found.tokenizer, str)
        assert sum(shard.tokens for shard in found.shards) in (0, found.tokens)
        source = open_source(str(prefix), "binidx")
        assert source.get(0, source.tokens).tolist() == TOKENS
        assert found.tokens == len(TOKENS)


@FUZZ
@given(st.binary(max_size=60))
def test_any_bytes_as_a_manifest_are_refused(pair, content):
    prefix, _, _ = pair
    manifest_path(prefix).write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(prefix)


def test_deeply_nested_json_is_refused(tmp_path):
    manifest_path(tmp_path / "data").write_text("[" * 100_000)
    with pytest.raises(DataError, match="damaged"):
        read_manifest(tmp_path / "data")
    assert joint_sha256([]) == joint_sha256(())


@pytest.fixture(scope="module")
def references():
    """Our World tokenizer and the one of the rwkv package."""
    import rwkv

    path = Path(rwkv.__path__[0]) / "rwkv_vocab_v20230424.txt"
    return load_tokenizer("world"), TRIE_TOKENIZER(str(path))


# Whole planes, combining marks, joiners, digits and spaces in runs, and what JSON escapes.
_ODD = "\u200d\u0301\ufe0f😀👩ก็好 \n\t0189aA'\"\\\0\ufffd"
ADVERSARIAL = st.text(max_size=60) | st.text(_ODD, max_size=80)


@FUZZ
@given(ADVERSARIAL)
def test_ids_are_the_reference_tokenizers_on_any_unicode(references, text):
    ours, theirs = references
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode_bytes(ids) == text.encode()
