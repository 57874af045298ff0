"""The binidx pair: layout, addressing, damage, and that nothing incomplete is ever readable."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest

from rwkv_train.data.binidx import writer as binidx_writer
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter, publish_pairs
from rwkv_train.errors import DataError
from tests.helpers import VECTORS, load_json

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_pair(prefix, items, dtype="uint16"):
    writer = BinidxWriter(prefix, dtype)
    for item in items:
        writer.append(item)
    writer.close()
    return prefix


def raw_pair(prefix, items, code=8, dtype="<u2", version=1, magic=b"MMIDIDX\0\0", boundaries=None):
    """Writes a pair by hand, independently of the writer."""
    arrays = [np.array(item, dtype) for item in items]
    ends = np.cumsum([a.nbytes for a in arrays])
    starts = [0, *ends[:-1].tolist()][: len(arrays)]
    boundaries = list(range(len(items) + 1)) if boundaries is None else boundaries
    index = magic + struct.pack("<QBQQ", version, code, len(items), len(boundaries))
    index += b"".join(struct.pack("<i", len(item)) for item in items)
    index += b"".join(struct.pack("<q", start) for start in starts)
    index += b"".join(struct.pack("<q", boundary) for boundary in boundaries)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(a.tobytes() for a in arrays))
    return prefix


@pytest.mark.parametrize("name", ["binidx_small", "binidx_int32"])
def test_reading_a_vector_gives_its_items_and_index(name):
    expected = load_json(name)
    pair = Binidx(VECTORS / name)
    assert (pair.dtype.name, pair.item_count) == (expected["dtype"], expected["item_count"])
    assert pair.tokens == sum(expected["sizes"])
    assert pair.sizes.tolist() == expected["sizes"]
    assert pair.pointers.tolist() == expected["pointers"]
    assert pair.doc_idx.tolist() == expected["doc_idx"]
    assert [pair.item(i).tolist() for i in range(pair.item_count)] == expected["items"]


def test_reading_addresses_the_whole_file_across_items():
    expected = load_json("binidx_small")
    pair = Binidx(VECTORS / "binidx_small")
    for example in expected["get_examples"]:
        start = sum(expected["sizes"][: example["idx"]]) + example["offset"]
        length = example["length"] or expected["sizes"][example["idx"]] - example["offset"]
        tokens = pair.get(start, length)
        assert tokens.dtype == np.int64
        assert tokens.tolist() == example["tokens"]


@pytest.mark.parametrize("name", ["binidx_small", "binidx_int32"])
def test_writing_gives_the_vectors_bytes(name, tmp_path):
    expected = load_json(name)
    with BinidxWriter(tmp_path / name, expected["dtype"]) as writer:
        for number, item in enumerate(expected["items"]):
            writer.append(item, continues=number not in expected["doc_idx"])
    for ending in ("bin", "idx"):
        written = (tmp_path / f"{name}.{ending}").read_bytes()
        assert written == (VECTORS / f"{name}.{ending}").read_bytes()
    assert writer.sha256 == expected["bin_sha256"]
    assert writer.documents == expected["doc_idx_count"] - 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("dtype", "code"), CODES.items())
def test_every_integer_type_survives_writing_and_reading(dtype, code, tmp_path):
    limits = np.iinfo(dtype)
    items = [[1, 2, int(limits.max)], [int(limits.min), 0]]
    write_pair(tmp_path / "written", items, dtype)
    raw_pair(tmp_path / "by_hand", items, code, np.dtype(dtype).newbyteorder("<"))
    for name in ("written", "by_hand"):
        assert Binidx(tmp_path / name).get(0, 5).tolist() == items[0] + items[1]
    for ending in ("bin", "idx"):
        written = (tmp_path / f"written.{ending}").read_bytes()
        assert written == (tmp_path / f"by_hand.{ending}").read_bytes()


def test_a_writer_closes_an_index_larger_than_its_block(tmp_path, monkeypatch):
    monkeypatch.setattr(binidx_writer, "_BLOCK", 3)
    items = [[i] * (i % 4 + 1) for i in range(11)]
    write_pair(tmp_path / "blocks", items)
    raw_pair(tmp_path / "by_hand", items)
    assert (tmp_path / "blocks.idx").read_bytes() == (tmp_path / "by_hand.idx").read_bytes()


def test_an_unpickled_reader_maps_the_files_again(tmp_path):
    pair = Binidx(write_pair(tmp_path / "data", [[5, 0], list(range(100)) * 50]))
    content = pickle.dumps(pair)
    assert len(content) < 1000
    assert pickle.loads(content).get(0, 4).tolist() == [5, 0, 0, 1]


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 5), (4, 1), (2, 3), (1, -1)])
def test_reading_outside_the_file_is_refused(offset, length, tmp_path):
    pair = Binidx(write_pair(tmp_path / "data", [[1, 2], [3, 4]]))
    with pytest.raises(DataError, match="holds 4 tokens"):
        pair.get(offset, length)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def lengthen(path, count):
    path.write_bytes(path.read_bytes() + b"\0" * count)


def damage_cut_header(path):
    truncate(path.with_suffix(".idx"), 20)


def damage_cut_index(path):
    truncate(path.with_suffix(".idx"), 60)


def damage_longer_index(path):
    lengthen(path.with_suffix(".idx"), 8)


def damage_short_bin(path):
    truncate(path.with_suffix(".bin"), 8)


def damage_odd_byte(path):
    lengthen(path.with_suffix(".bin"), 1)


def damage_longer_bin(path):
    lengthen(path.with_suffix(".bin"), 20)


def damage_empty_bin(path):
    path.with_suffix(".bin").write_bytes(b"")


def damage_no_bin(path):
    path.with_suffix(".bin").unlink()


def damage_no_idx(path):
    path.with_suffix(".idx").unlink()


def damage_magic(path):
    content = bytearray(path.with_suffix(".idx").read_bytes())
    content[0:4] = b"PK\3\4"
    path.with_suffix(".idx").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut_header, "cut off within its header"),
        (damage_cut_index, "has 60 bytes but its header .* needs 82"),
        (damage_longer_index, "has 90 bytes but its header .* needs 82"),
        (damage_short_bin, "has 8 bytes but its index needs 10"),
        (damage_odd_byte, "has 11 bytes but its index accounts for 10.*truncate --size 10"),
        (damage_longer_bin, "has 30 bytes but its index accounts for 10"),
        (damage_empty_bin, r"data\.bin is empty"),
        (damage_no_bin, r"data\.bin does not exist"),
        (damage_no_idx, r"data\.idx does not exist"),
        (damage_magic, "does not begin with MMIDIDX"),
    ],
)
def test_a_damaged_pair_is_refused_with_its_reason(damage, message, tmp_path):
    prefix = raw_pair(tmp_path / "data", [[1, 0], [2, 3, 0]])
    assert Binidx(prefix).tokens == 5
    damage(prefix)
    with pytest.raises(DataError, match=message):
        Binidx(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": 6, "dtype": "<f4"}, "float32 values .* must be integers"),
        ({"code": 7, "dtype": "<f8"}, "float64 values .* must be integers"),
        ({"code": 9}, "unknown data type code 9"),
        ({"version": 2}, "index version 2"),
    ],
)
def test_an_index_that_training_cannot_use_is_refused(change, message, tmp_path):
    prefix = raw_pair(tmp_path / "data", [[1, 2, 0]], **change)
    with pytest.raises(DataError, match=message):
        Binidx(prefix)


def test_an_index_without_items_is_refused(tmp_path):
    prefix = raw_pair(tmp_path / "data", [], boundaries=[0])
    with pytest.raises(DataError, match="lists no items"):
        Binidx(prefix)


def test_the_name_of_one_file_instead_of_the_prefix_gets_advice(tmp_path):
    write_pair(tmp_path / "data", [[1]])
    with pytest.raises(DataError, match=r"give the pair's common prefix, .*/data$"):
        Binidx(tmp_path / "data.bin")


@pytest.mark.parametrize("tokens", [[1, 65536], [-1], [1.5], [[1, 2]]])
def test_tokens_that_do_not_fit_the_type_are_refused(tokens, tmp_path):
    with pytest.raises(DataError), BinidxWriter(tmp_path / "data", "uint16") as writer:
        writer.append(tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["uint32", "float32", "float64", "uint64"])
def test_a_type_that_the_format_lacks_is_refused(dtype, tmp_path):
    with pytest.raises(DataError, match="use uint16 or int32"):
        BinidxWriter(tmp_path / "data", dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_without_tokens_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no tokens"), BinidxWriter(tmp_path / "data", "uint16"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_keeps_the_old_pair(tmp_path):
    write_pair(tmp_path / "data", [[1, 2, 3]])
    with pytest.raises(KeyboardInterrupt), BinidxWriter(tmp_path / "data", "uint16") as writer:
        writer.append([9, 9])
        raise KeyboardInterrupt
    assert Binidx(tmp_path / "data").get(0, 3).tolist() == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 2


class Killed(BaseException):
    """Stands for a process that is gone: nothing is cleaned up after it."""


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_while_two_pairs_are_renamed_leaves_only_right_ones_readable(
    survived, tmp_path, monkeypatch
):
    # Old and new files have equal sizes, so that a mixed pair would pass the size checks.
    for name in ("train", "val"):
        write_pair(tmp_path / name, [[1, 2, 3, 0]])
    rename, calls = BinidxWriter.rename, []

    def counted(self, path):
        calls.append(path)
        if len(calls) > survived:
            raise Killed
        rename(self, path)

    monkeypatch.setattr(BinidxWriter, "rename", counted)
    writers = [BinidxWriter(tmp_path / name, "uint16") for name in ("train", "val")]
    for writer in writers:
        writer.append([7, 8])
        writer.append([9, 0])
    with pytest.raises(Killed):
        publish_pairs(writers)
    for name in ("train", "val"):
        try:
            pair = Binidx(tmp_path / name)
        except DataError:
            continue
        assert pair.get(0, 4).tolist() == [7, 8, 9, 0]
        assert pair.sizes.tolist() == [2, 2]
