"""Inputs: found by name and pattern, unpacked, divided among machines without loss or overlap."""

from __future__ import annotations

import gzip
import io
import json
import sys
import types

import pytest

from rwkv_train.data.convert.pipeline import ConvertOptions, InputShard, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.text import blocks, inputs
from rwkv_train.data.text.blocks import BlockReader, digest
from rwkv_train.data.text.inputs import default_prefix, file_ranges, find_inputs
from rwkv_train.errors import DataError
from tests.data.corpora import documents_of

KEPT = Arrangement(shuffle=False)


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def made(folder, *names, **options):
    """The documents of a conversion with the bytes vocabulary, in the inputs' order."""
    given = {"tokenizer": "bytes", "arrangement": KEPT, "overwrite": True} | options
    convert(ConvertOptions([str(folder / name) for name in names], str(folder / "out"), **given))
    return documents_of(folder / "out")


def test_files_and_patterns_are_read_in_the_order_given(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_bytes(lines(name))
    (tmp_path / "z.jsonl").write_bytes(lines("z"))
    assert made(tmp_path, "z.jsonl", "[a-c].jsonl") == ["z", "a", "b", "c"]
    with pytest.raises(DataError, match=r"x\*\.jsonl: no file fits this pattern"):
        made(tmp_path, "x*.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl: there is no such file"):
        made(tmp_path, "x.jsonl")


def test_several_inputs_need_a_name_for_the_output(tmp_path):
    for name in ("a.jsonl", "b.v2.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    found = find_inputs([str(tmp_path / "a.jsonl"), str(tmp_path / "b.v2.jsonl.gz")])
    assert [default_prefix([file]) for file in found] == ["a", "b.v2"]
    with pytest.raises(DataError, match="--output PREFIX is needed"):
        default_prefix(found)
    with pytest.raises(DataError, match="cannot be joined"):
        find_inputs(["-", str(tmp_path / "a.jsonl")])


def test_a_gzip_file_in_several_members_is_read_whole(tmp_path):
    members = gzip.compress(lines("1", "2")), gzip.compress(lines("3"))
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(members))
    assert made(tmp_path, "a.jsonl.gz") == ["1", "2", "3"]


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: c[:30] + b"\0\0\0\0" + c[34:], lambda c: b"no gzip"]
)
def test_a_damaged_gzip_file_is_refused(damage, tmp_path):
    content = gzip.compress(lines(*(f"{i * i}" for i in range(100))))
    (tmp_path / "a.jsonl.gz").write_bytes(damage(content))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        made(tmp_path, "a.jsonl.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl.gz"]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    assert made(tmp_path, "a.txt", "b.txt.gz") == ["one\n\ntwo\n", "three"]
    (tmp_path / "c.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"c\.txt: not UTF-8 text: byte 0xff at position 3"):
        made(tmp_path, "c.txt")


def test_the_standard_input_is_a_jsonl(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(lines("a", "b"))))
    options = ConvertOptions(["-"], str(tmp_path / "out"), KEPT, "bytes")
    convert(options)
    assert documents_of(tmp_path / "out") == ["a", "b"]
    with pytest.raises(DataError, match="standard input cannot be compared"):
        convert(options)


@pytest.mark.parametrize(
    ("name", "package"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")]
)
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{name} needs the Python package {package}: pip install"):
        made(tmp_path, name)


def test_a_zstandard_file_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    content = b"".join(zstandard.compress(lines(text)) for text in ("1", "2"))
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    assert made(tmp_path, "a.jsonl.zst") == ["1", "2"]
    (tmp_path / "b.jsonl.zst").write_bytes(b"no zstandard at all")
    with pytest.raises(DataError, match=r"b\.jsonl\.zst is damaged"):
        made(tmp_path, "b.jsonl.zst")


def test_a_parquet_column_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["1", "2", None]}), tmp_path / "a.parquet")
    found = made(tmp_path, "a.parquet", text_key="body", on_error="skip")
    assert found == ["1", "2"]
    with pytest.raises(DataError, match=r"a\.parquet, row 3: 'body' must be a string, found null"):
        made(tmp_path, "a.parquet", text_key="body")
    with pytest.raises(DataError, match="no column 'text'; the columns are: body"):
        made(tmp_path, "a.parquet")


def test_bad_lines_are_skipped_and_counted_when_asked(tmp_path):
    content = lines("1") + b"broken\n\n" + lines("2") + b'{"other": 1}\n' + lines("3")
    (tmp_path / "a.jsonl").write_bytes(content)
    options = ConvertOptions(
        [str(tmp_path / "a.jsonl")], str(tmp_path / "out"), KEPT, "bytes", on_error="skip"
    )
    result = convert(options)
    assert documents_of(tmp_path / "out") == ["1", "2", "3"]
    assert result.skipped == 2
    assert [fault.partition(": ")[0][-6:] for fault in result.faults] == ["line 2", "line 5"]
    (tmp_path / "b.jsonl").write_bytes(b"broken\n")
    with pytest.raises(DataError, match=r"none of the 1 documents .*b\.jsonl, line 1"):
        made(tmp_path, "b.jsonl", on_error="skip")


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40])
def test_the_parts_of_several_machines_hold_every_document_once(of, tmp_path, monkeypatch):
    texts = [f"{i}" * (i % 5) for i in range(30)]
    (tmp_path / "a.jsonl").write_bytes(lines(*texts[:20]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*texts[20:25])))
    (tmp_path / "c.jsonl").write_bytes(lines(*texts[25:]).rstrip())
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    files = find_inputs([str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")])
    found = []
    for worker in range(of):
        mine = file_ranges(files, worker, of)
        reader = BlockReader(mine, "text")
        content = b"\n".join(block.content for block in reader)
        found += [json.loads(line)["text"] for line in content.splitlines() if line]
        assert reader.sha256 == digest(mine)
    assert found == texts


def test_a_fault_in_a_later_part_is_named_with_its_line_in_the_file(tmp_path):
    content = lines(*(f"{i}" for i in range(50)))
    (tmp_path / "a.jsonl").write_bytes(content + b"broken\n")
    files = find_inputs([str(tmp_path / "a.jsonl")])
    (file_range,) = file_ranges(files, 2, 3)
    assert 0 < blocks.lines_before(file_range) < 50
    options = ConvertOptions(
        [str(tmp_path / "a.jsonl")],
        str(tmp_path / "out"),
        KEPT,
        "bytes",
        input_shard=InputShard(2, 3),
    )
    with pytest.raises(DataError, match=r"a\.jsonl, line 51: not JSON"):
        convert(options)


def test_the_standard_input_cannot_be_divided():
    with pytest.raises(DataError, match="cannot be divided"):
        inputs.file_ranges(find_inputs(["-"]), 0, 2)
