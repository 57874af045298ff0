"""Inputs are what their bytes say: packed or not, lines or an array, whatever their name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
import types

import pytest

from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.text import blocks
from rwkv_train.errors import DataError
from tests.data.corpora import documents_of

TEXTS = ["one", "zwö\n😀", "three"]
ROWS = [{"text": text, "n": [1, {"m": "]}"}]} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def made(path, **options):
    given = {"tokenizer": "bytes", "arrangement": Arrangement(shuffle=False), "overwrite": True}
    out = path.parent / "out" if path.name != "-" else options.pop("folder") / "out"
    convert(ConvertOptions([str(path)], str(out), **(given | options)))
    return utf8_documents(out)


def utf8_documents(prefix):
    return [text.encode("latin-1").decode() for text in documents_of(prefix)]


def same(content):
    return content


@pytest.mark.parametrize("pack", [same, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a", "a.bin", "a.gz", "a.json.xz", "a.parquet"])
def test_lines_are_found_packed_or_not_under_any_name(pack, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pack(LINES))
    if pack is not same and name == "a.parquet":
        with pytest.raises(DataError, match="compressed inside"):
            made(path)
        return
    assert made(path) == TEXTS


def test_parquet_and_zstandard_are_found_under_other_names(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_bytes(zstandard.compress(LINES))
    assert made(tmp_path / "a.jsonl") == TEXTS
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "b.jsonl")
    assert made(tmp_path / "b.jsonl") == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff \n" + json.dumps(ROWS, indent=4, ensure_ascii=False).replace("\n", "\r\n"),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:]) + "[]",
        "[" + ",".join(json.dumps({**row, "x": float("nan")}) for row in ROWS) + "\n]\n",
        "\r".join(map(json.dumps, ROWS)),
    ],
)
def test_arrays_and_pretty_printed_objects_are_read_in_blocks_of_any_size(
    content, tmp_path, monkeypatch
):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode())
    for block_bytes in (1, 5, 64, 1 << 19):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        assert made(path) == TEXTS


def test_faults_of_an_array_are_named_by_item_and_damage_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*ROWS, {"other": 1}], indent=1))
    with pytest.raises(DataError, match=r"a\.json, item 4: there is no key 'text'"):
        made(path)
    assert made(path, on_error="skip") == TEXTS
    for content, reason in [
        ('[\n{"text": "a"},\n]', "line 3, column 1: not JSON: Expecting value"),
        ('[\n{"text": "a"}\n{"text": "b"}]', "line 3, column 1: .*expected a comma"),
        ('[\n{"text": "a"},\n\n{"text": "b', "line 4, column 10: .*Unterminated"),
        ('[{"text": "a"}', "inside an array|expected a comma"),
        ('[\n{"text": "a",\n "b" 1}]', "line 3, column 6: not JSON: Expecting ':'"),
        ("[" * 100_000, "nested too deeply"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=reason):
            made(path)
    path.write_bytes(b'[{"text": "\xff"}]')
    with pytest.raises(DataError, match="byte 0xff is not UTF-8 text"):
        made(path)


def test_a_broken_first_line_is_still_one_of_many(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "open}\n' + LINES)
    assert made(path, on_error="skip") == TEXTS
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: not JSON"):
        made(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text\n1,one\n2,"zwö\n😀"\n3,three\n'),
        ("a.tsv", '\ufeffid\ttext\r\n1\tone\r\n2\t"zwö\n😀"\r\n\r\n3\tthree'),
        ("a.csv", 'text;id\none;1\n"zwö\n😀";2\nthree;3\n'),
    ],
)
def test_tables_are_read_row_by_row(name, content, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(content.encode())
    for block_bytes in (1, 1 << 19):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        assert made(path) == TEXTS
    with pytest.raises(DataError, match="no column 'body'; the columns are: "):
        made(path, text_key="body")


def test_columns_of_a_table_are_questions_and_answers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response,system\nq,a,\nq,b,s\n")
    found = made(path, chat_template="world")
    assert found == ["User: q\n\nAssistant: a\n\n", "System: s\n\nUser: q\n\nAssistant: b\n\n"]
    path.write_text("text,b\none,1\ntwo\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: 1 cells, expected 2; .* quotes"):
        made(path)


def test_a_text_file_may_be_markdown_or_begin_with_a_bracket(tmp_path):
    (tmp_path / "a.md").write_text("# Title\n\n[link](x)\n")
    assert made(tmp_path / "a.md") == ["# Title\n\n[link](x)\n"]
    (tmp_path / "b.txt").write_text('["not", "rows"]')
    assert made(tmp_path / "b.txt") == ['["not", "rows"]']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "zip archive.*unpack it"),
        (b"%PDF-1.7", "PDF document.*take the text out"),
        (b"MMIDIDX\0\0", r"already made.*train\.py --data_file"),
        (b"\x93NUMPY\1\0", "NumPy.*--data_type numpy"),
        (b"ARROW1\0\0", "Arrow.*parquet"),
        (b"SQLite format 3\0", "database.*csv"),
        ("text".encode("utf-16"), "UTF-16 text.*iconv -f UTF-16"),
        ("text".encode("utf-32"), "UTF-32 text.*iconv -f UTF-32"),
        (b"\n<!DOCTYPE html><p>", "HTML.*take the text out"),
        (b"a" * 257 + b"ustar  ", "tar archive.*unpack it"),
    ],
)
def test_what_is_no_text_is_named_with_the_next_step(content, words, tmp_path):
    for name, packed in (("a.jsonl", content), ("b.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(DataError, match=f"{name}.*{words}"):
            made(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.gz"}


def test_a_folder_is_refused_with_the_pattern_of_its_files(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="folder without files"):
        made(tmp_path / "in")
    for name in ("a.txt", "b.jsonl", "c.jsonl"):
        (tmp_path / "in" / name).write_bytes(LINES)
    with pytest.raises(DataError, match=r"2 \.jsonl, 1 \.txt\); name its files: '.*in/\*\.jsonl'"):
        made(tmp_path / "in")


@pytest.mark.parametrize(
    "content", [LINES, gzip.compress(LINES), json.dumps(ROWS).encode()], ids=["jsonl", "gz", "json"]
)
def test_a_pipe_is_read_and_known_by_its_bytes(content, tmp_path, monkeypatch):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    assert made(path) == TEXTS
    writer.join()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    (tmp_path / "out").with_suffix(".manifest.json").unlink()
    for ending in (".bin", ".idx"):
        (tmp_path / "out").with_suffix(ending).unlink()
    convert(
        ConvertOptions(["-"], str(tmp_path / "out"), Arrangement(shuffle=False), tokenizer="bytes")
    )
    assert utf8_documents(tmp_path / "out") == TEXTS


def test_parquet_cannot_come_from_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"PAR1 rest")))
    with pytest.raises(DataError, match=r"standard input is a parquet file.*name the file itself"):
        convert(ConvertOptions(["-"], str(tmp_path / "out"), tokenizer="bytes"))
