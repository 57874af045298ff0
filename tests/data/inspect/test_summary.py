"""What a conversion tells its user."""

from __future__ import annotations

import json

import pytest

from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.inspect.summary import flag_line, report, small_data_advice
from rwkv_train.errors import DataError


def converted(folder, texts, **changes):
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    given = {"tokenizer": "bytes", "prefix": str(folder / "out")} | changes
    arrangement = Arrangement(shuffle=False, validation=given.pop("validation", 0.0))
    return convert(ConvertOptions([str(folder / "in.jsonl")], arrangement=arrangement, **given))


def test_the_flags_of_the_demo_sample_are_the_references():
    # data.md section 3: 200499 tokens, context 512.
    expected = "--data_file demo --my_exit_tokens 200499 --magic_prime 389 --ctx_len 512"
    assert flag_line("demo", 200499, 512) == expected
    assert flag_line("demo", 200499, 512, 65536) == f"{expected} --vocab_size 65536"


def test_flags_for_too_little_data_are_refused_and_advised_on():
    with pytest.raises(DataError, match="at least 96"):
        flag_line("demo", 95, 32)
    assert "at least 96; use --ctx_len 31 or less" in small_data_advice(95, 32)
    assert "more text is needed" in small_data_advice(2, 32)


def test_a_report_counts_and_previews_the_first_and_the_last_document(tmp_path):
    text = report(converted(tmp_path, ["first", "x" * 150, "line\nend"]), 8)
    about = "(uint16, tokenizer bytes, 0.98 bytes of text per token)"
    assert f"{tmp_path}/out: 3 documents, 166 tokens {about}" in text
    assert "first document (6 tokens): 'first'" in text
    assert r"last document (9 tokens): 'line\nend'" in text
    assert text.endswith("--magic_prime 17 --ctx_len 8 --vocab_size 257")


def test_a_long_document_is_shown_by_its_beginning(tmp_path):
    text = report(converted(tmp_path, ["x" * 150]), 8)
    assert f"(151 tokens): '{'x' * 100}' ...\n" in text


def test_leftovers_that_could_be_mistaken_for_the_data_are_noted(tmp_path):
    assert "note" not in report(converted(tmp_path, ["a", "b"] * 9, validation=0.5), 2)
    (tmp_path / "out.bin.4711.partial").write_bytes(b"")
    (tmp_path / "other.bin.4711.partial").write_bytes(b"")
    text = report(converted(tmp_path, ["a", "b"] * 9, overwrite=True), 2)
    assert f"note: {tmp_path}/out_val.bin was held out of other data" in text
    assert f"note: {tmp_path}/out.bin.4711.partial is left from an interrupted run" in text
    assert "other.bin" not in text


def test_previews_are_short_whatever_the_documents_hold(tmp_path):
    texts = ["word " * 5000, "x\n" * 5000, "".join(map(chr, range(0x4E00, 0x6000)))]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    rows = [{"prompt": text, "response": text} for text in texts]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, template in (("in", None), ("chat", "world")):
        inputs, prefix = [str(tmp_path / f"{name}.jsonl")], str(tmp_path / name)
        made = convert(ConvertOptions(inputs, prefix, chat_template=template))
        for line in report(made, 64).splitlines():
            assert len(line.replace(str(tmp_path), "")) < 500, line
