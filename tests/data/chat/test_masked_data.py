"""Data with a loss mask after it was made: made again, damaged, replaced, shown, joined."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import make_data
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.convert.merge_pairs import merge_pairs
from rwkv_train.data.convert.pipeline import convert
from rwkv_train.data.inspect.examine import inspect, verify
from rwkv_train.data.inspect.loss_mask_preview import marked
from rwkv_train.data.tokenize.tokenizer import BytesTokenizer
from rwkv_train.errors import DataError
from tests.data.chat.conversations import options, rows_file, written


def test_made_again_it_is_left_and_another_template_is_not_mixed_in(tmp_path):
    convert(options(tmp_path))
    assert convert(options(tmp_path)).reused
    own = tmp_path / "own.yaml"
    own.write_text("roles: {user: {before: 'Q:'}, assistant: {before: 'A:', weight: 1}}")
    with pytest.raises(DataError, match=r"different: chat_template"):
        convert(options(tmp_path, chat_template=str(own)))
    convert(options(tmp_path, chat_template=str(own), overwrite=True))
    assert written(tmp_path / "out")[2] == "Q:qA:[r0]"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_mask_is_noticed_and_made_again(damage, tmp_path):
    convert(options(tmp_path))
    path = tmp_path / "out.mask"
    good = path.read_bytes()
    if damage == "gone":
        path.unlink()
        with pytest.raises(DataError, match=r"out\.mask is missing"):
            inspect(str(tmp_path / "out"))
    else:
        path.write_bytes(good[:-1] + b"\7")
    with pytest.raises(DataError, match=r"out\.mask is (not what it was|missing)"):
        verify(str(tmp_path / "out"))
    assert not convert(options(tmp_path, overwrite=True)).reused
    assert path.read_bytes() == good


def test_replaced_by_data_without_a_mask_the_mask_is_gone(tmp_path):
    convert(options(tmp_path, shard_tokens=60))
    assert len(list(tmp_path.glob("out*.mask"))) > 1
    convert(options(tmp_path, overwrite=True))
    assert [path.name for path in tmp_path.glob("out*.mask")] == ["out.mask"]
    convert(options(tmp_path, [{"text": "a"}], chat_template=None, overwrite=True))
    assert list(tmp_path.glob("*.mask")) == []


def test_a_mask_alone_is_not_overwritten(tmp_path):
    (tmp_path / "out.mask").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"out\.mask exists and what it was made from is not known"):
        convert(options(tmp_path))


def test_interrupted_it_leaves_no_mask(tmp_path, monkeypatch):
    def interrupt(self, *documents):
        append(self, *documents)
        os.kill(os.getpid(), signal.SIGINT)

    append = BinidxWriter.append_documents
    monkeypatch.setattr(BinidxWriter, "append_documents", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_tools_show_what_is_learnt(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    line = ["in.jsonl", "1", "8", "--tokenizer", "bytes", "--no_shuffle", "-o", "out"]
    assert make_data.main([*line, "--chat_template", "world"]) == 0
    # 21 + 5, 6, 19 + 5 and 19 + 4 + 10 tokens, of which 5 + 6 + 5 + 4 count
    shown = "loss mask: 20 of 89 tokens are learnt (22.5%)"
    assert shown in capsys.readouterr().out
    assert make_data.main(["--inspect", "out"]) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert r"document 0 of out (26 tokens): User: a\nb\n\nAssistant:[[ c\n\n<0>]]" in out
    assert r"User: x\n\nAssistant:[[ y\n\n]]User: z\n\n<0>" in out
    assert make_data.main(["--verify_pair", "out"]) == 0
    assert "sha256, loss mask and index are right; 4 documents decoded" in capsys.readouterr().out


def test_weights_and_long_stretches_are_shown_in_short():
    ids = np.array([*[ord("a") + 1] * 100, *[ord("b") + 1] * 3, 0])
    weights = np.array([0] * 100 + [2] * 3 + [1], np.uint8)
    shown = marked(ids, weights, BytesTokenizer())
    assert shown == f"{'a' * 30} ... {'a' * 30}[[2:bbb]][[<0>]]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chat_template", "none.yaml"], ["--chat_template none.yaml", "'world'"]),
        ([], ["line 1: there is no key 'text'", "--chat_template"]),
    ],
)
def test_a_mistake_is_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    assert make_data.main(["in.jsonl", "1", "8", "--tokenizer", "bytes", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_mask_that_another_tool_put_beside_its_pair_is_joined(tmp_path):
    with BinidxWriter(tmp_path / "foreign", "uint16") as writer:
        writer.append([98, 99, 0])
    (tmp_path / "foreign.mask").write_bytes(b"\0\1\1")
    names = [str(tmp_path / "foreign")] * 2
    merge_pairs(names, str(tmp_path / "both"), tokenizer="bytes")
    assert written(tmp_path / "both") == ["a[b0]", "a[b0]"]
    (tmp_path / "foreign.mask").write_bytes(b"\1\1\1")
    with pytest.raises(DataError, match=r"something else \(different: mask_sha256\)"):
        merge_pairs(names, str(tmp_path / "both"), tokenizer="bytes")
