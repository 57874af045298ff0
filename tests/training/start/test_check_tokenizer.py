"""A model and its data must have one tokenizer: it is recorded next to checkpoints and compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv_train.config.load import load_config
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.tokenize.tokenizer_files import TokenizerRecord, read_record, write_record
from rwkv_train.errors import CheckpointError, ConfigError, DataError
from rwkv_train.inference.loading import tokenizer_of
from rwkv_train.training.start.check_tokenizer import compare_tokenizers, tokenizer_of_data
from rwkv_train.training.start.data_files import open_data_files

WORLD = TokenizerRecord("world", "world", 65536)
BYTES = TokenizerRecord("bytes", "bytes", 257)
ONE, TWO = (TokenizerRecord("/t.json", digest * 8, 300) for digest in ("12345678", "87654321"))


def compared(folder, data, *flags, rows=65536):
    point = SimpleNamespace(path=folder / "model.pth")
    return compare_tokenizers(load_config(list(flags)), point, rows, data)


@pytest.mark.parametrize(("model", "data"), [(WORLD, BYTES), (BYTES, WORLD), (ONE, TWO)])
def test_another_tokenizer_is_refused_unless_it_is_confirmed(model, data, tmp_path):
    write_record(tmp_path, model)
    assert read_record(tmp_path) == model
    assert compared(tmp_path, model) == []
    with pytest.raises(ConfigError, match=f"trained with the tokenizer {model.name} .*--tokenizer"):
        compared(tmp_path, data)
    (note,) = compared(tmp_path, data, "--tokenizer", data.name)
    assert "as --tokenizer confirms" in note


def test_the_configuration_of_an_older_run_tells_it_too(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {tokenizer: world}")
    with pytest.raises(ConfigError, match="trained with the tokenizer world"):
        compared(tmp_path, BYTES)
    assert compared(tmp_path, WORLD) == []
    (tmp_path / "config.yaml").write_text("of: {another: program}")
    with pytest.raises(ConfigError, match="65536 rows"):
        compared(tmp_path, BYTES)


def test_a_file_alone_is_judged_by_its_rows(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        compared(tmp_path, BYTES)
    for words in ("65536 rows", "bytes (257 ids)", "--tokenizer world", "say --tokenizer bytes"):
        assert words in str(refusal.value)
    (note,) = compared(tmp_path, BYTES, "--tokenizer", "bytes")
    assert "as --tokenizer confirms" in note
    # A vocabulary of nearly as many may have been padded to them.
    (note,) = compared(tmp_path, ONE._replace(vocab_size=65529))
    assert note.startswith("WARNING: ") and "65536 rows" in note
    assert compared(tmp_path, ONE._replace(vocab_size=65536)) == []
    assert compared(tmp_path, WORLD) == []
    assert compared(tmp_path, BYTES, rows=300) == []
    assert compared(tmp_path, None) == []
    # New weights have no tokenizer yet.
    fresh = SimpleNamespace(path=None)
    assert compare_tokenizers(load_config([]), fresh, 65536, BYTES) == []


def test_the_data_s_tokenizer_comes_from_its_manifest(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "some words"}\n' * 9)
    convert(ConvertOptions([str(tmp_path / "in.jsonl")], str(tmp_path / "out"), tokenizer="bytes"))
    flags = ["--data_file", str(tmp_path / "out"), "--ctx_len", "8"]
    opened = open_data_files(load_config(flags).data)
    assert tokenizer_of_data(None, opened) == BYTES
    (tmp_path / "out.manifest.json").unlink()
    opened = open_data_files(load_config(flags).data)
    assert tokenizer_of_data(None, opened) is None
    assert tokenizer_of_data("bytes", opened) == BYTES


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": 1, "identity": null, "vocab_size": 2}', "[" * 100_000]
)
def test_a_damaged_record_is_refused(content, tmp_path):
    (tmp_path / "tokenizer_record.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer_record\.json is damaged"):
        read_record(tmp_path)


def test_generating_takes_the_recorded_tokenizer_and_notices_another(tmp_path):
    write_record(tmp_path, BYTES)
    assert tokenizer_of(tmp_path / "model.pth", 65536).name == "bytes"
    lines = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(lines))
    write_record(tmp_path, TokenizerRecord(str(vocabulary), "0" * 64, 257))
    with pytest.raises(CheckpointError, match=r"vocab\.txt is not the tokenizer that"):
        tokenizer_of(tmp_path / "model.pth", 257)
    assert tokenizer_of(tmp_path / "model.pth", 257, str(vocabulary)).vocab_size == 257
    record = json.loads(Path(tmp_path / "tokenizer_record.json").read_text())
    assert record == {"name": str(vocabulary), "identity": "0" * 64, "vocab_size": 257}
