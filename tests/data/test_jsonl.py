"""Documents of a jsonl file: streamed, and every fault named with its line."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from src.data.jsonl import read_documents
from src.errors import DataError

GOOD = b'{"text": "fine"}\n'


def texts(path, **options):
    return [document.text for document in read_documents(path, **options)]


def test_documents_come_with_their_line_numbers_and_lengths(tmp_path):
    path = tmp_path / "a.jsonl"
    last = '{"text": "zwöi\\n\\u597d", "id": 3}'.encode()
    lines = [b'{"text": "one"}\n', b"\n", b" \t\r\n", last]
    path.write_bytes(b"".join(lines))
    first, second = read_documents(path)
    assert (first.file, first.line, first.text, first.bytes) == (str(path), 1, "one", len(lines[0]))
    assert (second.line, second.text, second.bytes) == (4, "zwöi\n好", len(lines[3]))
    assert second.place == f"{path}, line 4"


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


def test_documents_before_a_fault_are_delivered_before_the_rest_is_read(tmp_path):
    (tmp_path / "a").write_bytes(GOOD * 3 + b"broken\n")
    assert len(list(islice(read_documents(tmp_path / "a"), 3))) == 3


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
def test_a_file_without_documents_is_refused(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="holds no documents"):
        texts(tmp_path / "a")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere: No such file"):
        texts(tmp_path / "nowhere")
