"""Documents of a jsonl file: cut at lines, and every fault named with its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_train.data.text import blocks
from rwkv_train.data.text.blocks import BlockReader
from rwkv_train.data.text.inputs import file_ranges, find_inputs
from rwkv_train.data.text.jsonl import document_text
from rwkv_train.data.tokenize.block_encoder import block_documents, location
from rwkv_train.errors import DataError

GOOD = b'{"text": "fine"}\n'


def rows(path, text_key="text"):
    """Line numbers and texts of a file's documents, or a DataError with the place."""
    found, before = [], 0
    for block in BlockReader(file_ranges(find_inputs([str(path)])), text_key):
        numbered, lines = block_documents(block)
        for line, content in numbered:
            try:
                found.append((before + line, document_text(content, text_key)))
            except DataError as error:
                raise DataError(f"{location(block.file_range, before + line)}: {error}") from error
        before += lines
    return found


def texts(path, **options):
    return [text for _, text in rows(path, **options)]


def test_documents_come_with_their_line_numbers(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    last = '{"text": "zwöi\\n\\u597d", "id": 3}'.encode()
    path.write_bytes(b'{"text": "one"}\n\n \t\r\n' + last)
    for block_bytes in (1, 7, 30, 1 << 20):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        assert rows(path) == [(1, "one"), (4, "zwöi\n好")]


def test_a_byte_order_mark_and_windows_line_ends_are_ignored(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "\xef\xbb\xbftwo"}\r\n')
    assert texts(tmp_path / "a") == ["one", "\ufefftwo"]


def test_another_text_key_can_be_chosen(tmp_path):
    (tmp_path / "a").write_text('{"text": "no", "content": "yes"}')
    assert texts(tmp_path / "a", text_key="content") == ["yes"]


@pytest.mark.parametrize("text", ["", "\x00", "\ufffd", "\u2028", "a\nb", "😀", '"\\'])
def test_any_string_comes_out_as_json_means_it(text, tmp_path):
    for ascii_only in (True, False):
        line = json.dumps({"text": text}, ensure_ascii=ascii_only)
        (tmp_path / "a").write_text(line, encoding="utf-8")
        assert texts(tmp_path / "a") == [text]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "open}', r"not JSON: .*\(column"),
        (b"text", "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'["text"]', "expected an object .* found a list"),
        (b'"text"', "expected an object .* found a string"),
        (b"17", "found a number"),
        (b"null", "found null"),
        (b'{"Text": "a", "id": 1}', "no key 'text'; the keys are: Text, id .*--text_key"),
        (b"{}", "no key 'text'; the keys are: none"),
        (rb'{"line\nbreak": 1}', r"the keys are: line\\nbreak .choose"),
        (b'{"text": 5}', "'text' must be a string, found a number"),
        (b'{"text": null}', "must be a string, found null"),
        (b'{"text": true}', "must be a string, found true or false"),
        (b'{"text": {"a": 1}}', "must be a string, found an object"),
        (b'{"text": "\\ud800 alone"}', "lone surrogate"),
        (b'{"text": "\\udc00"}', "lone surrogate"),
        (b'{"text": "\xff"}', "not UTF-8 text: byte 0xff at position 11"),
        ('{"text": "a"}'.encode("utf-16"), "not UTF-8 text: byte 0xff at position 1"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_reason(line, reason, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: .*{reason}"):
        texts(path)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_a_file_without_documents_gives_none(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert texts(tmp_path / "a") == []


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=40)
    | st.text(max_size=20).map(lambda t: json.dumps(t).encode())
    | st.builds(lambda t, e: b'{"text": ' + t.encode() + e, st.text(max_size=9), st.binary())
)
def test_any_line_is_a_text_or_an_error_with_a_reason(line):
    try:
        text = document_text(line, "text")
    except DataError as error:
        assert str(error)
    else:
        # Python's own parser agrees, and UTF-8 can store it.
        assert json.loads(line)["text"] == text
        text.encode()


@pytest.mark.parametrize(
    "other",
    [
        b"NaN",
        b"-Infinity",
        b"[Infinity, {}]",
        b"1e999",
        b"9" * 5000,
        b"-" + b"9" * 30,
        rb'"\ud800"',
        rb'{"\udc00": 1}',
        b'"\xed\xa0\x80"',
        b"1, " + b'"other": NaN',
    ],
)
def test_what_python_reads_under_other_keys_does_no_harm(other, tmp_path):
    line = b'{"other": ' + other + b', "text": "g\xc3\xb6\\ud83d\\ude00d"}\r\n'
    (tmp_path / "a").write_bytes(line)
    assert texts(tmp_path / "a") == ["gö😀d"]


def test_files_joined_with_their_marks_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\xef\xbb\xbf{"text": "two"}\n')
    assert texts(tmp_path / "a") == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN, "text": "\\ud800"}', "'text' holds a lone surrogate .* at character 0"),
        (b'{"a": NaN, "text": 5}', "must be a string, found a number"),
        (b'{"text": "a", "b": 1,}', r"not JSON: .*\(column"),
        (b'{"text": "a\x01"}', r"not JSON: .*\(column"),
        (b'{"text": "a\x00"}', r"not JSON: .*\(column"),
        (b'{"text": "a", "b": 01}', r"not JSON: .*\(column"),
        (b'{"text": "a", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"{'text': 'a'}", r"not JSON: .*\(column"),
    ],
)
def test_what_python_does_not_read_either_is_refused(line, reason):
    with pytest.raises(DataError, match=reason):
        document_text(line, "text")
