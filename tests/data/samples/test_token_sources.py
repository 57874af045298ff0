"""The small data formats: tokens as stored, characters by rank, unusable files refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.errors import DataError


def all_tokens(source):
    return source.get(0, source.tokens).tolist()


def test_binidx_is_opened_by_its_prefix(tmp_path):
    with BinidxWriter(tmp_path / "data", "uint16") as writer:
        writer.append([3, 1, 0])
    assert all_tokens(open_source(str(tmp_path / "data"), "binidx")) == [3, 1, 0]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint32"])
def test_numpy_tokens_come_out_as_stored(dtype, tmp_path):
    np.save(tmp_path / "data.npy", np.array([7, 0, 250], dtype))
    source = open_source(str(tmp_path / "data.npy"), "numpy")
    assert source.get(1, 2).dtype == np.int64
    assert all_tokens(source) == [7, 0, 250]


def test_uint16_is_raw_little_endian(tmp_path):
    (tmp_path / "data.u16").write_bytes(b"\x01\x00\x00\x01\xff\xff")
    assert all_tokens(open_source(str(tmp_path / "data.u16"), "uint16")) == [1, 256, 65535]


# Distinct characters in code point order: newline, "a", "b", "é", "好", "😀".
TEXT = "ab\r\n好😀a\né"
RANKS = [1, 2, 0, 4, 5, 1, 0, 3]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16le"])
def test_a_character_is_its_rank_among_those_that_occur(encoding, tmp_path):
    (tmp_path / "text").write_bytes(TEXT.encode(encoding))
    source = open_source(str(tmp_path / "text"), encoding)
    assert all_tokens(source) == RANKS
    assert source.characters == {0: "\n", 1: "a", 2: "b", 3: "é", 4: "好", 5: "😀"}
    assert source.vocab_size == 6


def test_the_dummy_text_has_the_references_size_and_beginning():
    source = open_source(None, "dummy")
    assert (source.tokens, source.vocab_size) == (1620950, 13)
    begin = "".join(source.characters[i] for i in source.get(0, 42).tolist())
    assert begin == ".0+0=0..1+1=2..2+4=6..3+9=12..4+16=20..5+2"
    end = "".join(source.characters[i] for i in source.get(source.tokens - 26, 26).tolist())
    # k = 99998 and 99999: a is 9998 and 9999; b, the square modulo 10000, is 4 and 1.
    assert end == ".9998+4=10002..9999+1=10000."[-26:]


@pytest.mark.parametrize("data_type", ["numpy", "uint16", "utf-8"])
def test_an_unpickled_source_gives_the_same_tokens(data_type, tmp_path):
    path = tmp_path / "data"
    with path.open("wb") as file:
        if data_type == "numpy":
            np.save(file, np.arange(5000))
        else:
            file.write(b"abcd" * 2500)
    source = open_source(str(path), data_type)
    content = pickle.dumps(source)
    assert len(content) < 1000
    assert all_tokens(pickle.loads(content)) == all_tokens(source)


def save(path, array):
    with path.open("wb") as file:
        np.save(file, array)


@pytest.mark.parametrize(
    ("data_type", "write", "message"),
    [
        ("numpy", lambda path: save(path, np.zeros((2, 3), int)), "one-dimensional"),
        ("numpy", lambda path: save(path, np.zeros(3)), "integers"),
        ("numpy", lambda path: save(path, np.zeros(0, int)), "empty"),
        ("numpy", lambda path: path.write_bytes(b"no array"), "not a readable .npy"),
        ("uint16", lambda path: path.write_bytes(b"abc"), "3 bytes, an odd number"),
        ("uint16", lambda path: path.write_bytes(b""), "is empty"),
        ("utf-8", lambda path: path.write_bytes(b"ok \xff"), "not utf-8 text.*at byte 3"),
        ("utf-16le", lambda path: path.write_bytes(b"\x00\xd8a\x00"), "not utf-16le text"),
        ("utf-8", lambda path: path.write_bytes(b""), "is empty"),
        ("utf-8", lambda path: None, "no such file"),
        ("wds_img", lambda path: path.write_bytes(b"x"), "wds_img is unknown.*binidx"),
    ],
)
def test_an_unusable_file_is_refused_with_its_reason(data_type, write, message, tmp_path):
    write(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "data"), data_type)


def test_a_data_type_without_its_file_is_refused():
    with pytest.raises(DataError, match="utf-8 needs --data_file"):
        open_source(None, "utf-8")


def test_reading_outside_a_source_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    source = open_source(str(tmp_path / "text"), "utf-8")
    for offset, length in ((-1, 2), (4, 2), (0, -1)):
        with pytest.raises(DataError, match="holds 5 tokens"):
            source.get(offset, length)
