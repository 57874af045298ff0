"""Where the output goes: under a prefix, or in a folder under the input's name."""

from __future__ import annotations

import pytest

import make_data
from rwkv_train.data.binidx.manifest import manifest_prefix
from rwkv_train.data.samples.token_sources import open_source

LINE = b'{"text": "words"}\n' * 4


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "in.v1.jsonl").write_bytes(LINE)


def made(*arguments, inputs=("in.v1.jsonl",)):
    return make_data.main([*inputs, "1", "2", "--tokenizer", "bytes", *arguments])


@pytest.mark.parametrize(
    ("output", "prefix"),
    [
        ("new/", "new/in.v1"),
        ("new/deep//", "new/deep/in.v1"),
        (".", "in.v1"),
        ("./", "in.v1"),
        ("..", "../in.v1"),
        ("../", "../in.v1"),
        ("new/.", "new/in.v1"),
        ("new/x.v2", "new/x.v2"),
        (".hidden", ".hidden"),
    ],
)
def test_a_folder_gets_the_input_s_name(output, prefix, tmp_path, capsys):
    assert made("-o", output) == 0
    assert (tmp_path / "here" / f"{prefix}.bin").is_file()
    assert f"--data_file {prefix} " in capsys.readouterr().out
    made_files = {p.name for p in tmp_path.rglob("*.bin")}
    assert made_files == {f"{prefix.rpartition('/')[2]}.bin"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", ""], "--output is empty"),
        (["-o", "new/", "in.v1.jsonl"], "--output PREFIX is needed for several inputs"),
        (["--merge", "a", "-o", "new/"], "does not name the joined data; give FOLDER/NAME"),
    ],
)
def test_what_names_nothing_is_refused_and_nothing_made(arguments, words, tmp_path, capsys):
    if arguments[0] == "--merge":
        assert make_data.main(arguments) == 2
    else:
        assert made(*arguments[:2], inputs=["in.v1.jsonl", *arguments[2:]]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["in.v1.jsonl"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    (tmp_path / "here" / "in.v1.jsonl").write_bytes(LINE + b"broken\n")
    assert made("-o", "new/") == 2
    assert not (tmp_path / "here" / "new").exists()
    (tmp_path / "here" / "old").mkdir()
    assert made("-o", "old/") == 2
    assert (tmp_path / "here" / "old").is_dir()


def test_a_file_of_a_pair_names_the_pair(tmp_path, capsys):
    assert made() == 0
    tokens = open_source("in.v1", "binidx").tokens
    for name in ("in.v1.bin", "in.v1.idx", "in.v1.manifest.json"):
        assert open_source(name, "binidx").tokens == tokens
        assert make_data.main(["--inspect", name]) == 0
    # A pair may be called so itself.
    assert made("-o", "x.bin") == 0
    assert manifest_prefix("x.bin") == "x.bin"
    assert manifest_prefix("x.bin.bin") == "x.bin"
    assert manifest_prefix("nothing.bin") == "nothing.bin"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("in.v1.jsonl", r"is a file and no binidx data; .* make_data.py in.v1.jsonl REPEATS"),
        ("a.npy", "array of NumPy: read it with --data_type numpy"),
        (".", "name a pair by its common prefix"),
    ],
)
def test_a_file_that_is_no_pair_is_refused_with_the_next_step(name, words, tmp_path):
    from rwkv_train.errors import DataError

    (tmp_path / "here" / "a.npy").write_bytes(b"\x93NUMPY\1\0rest")
    with pytest.raises(DataError, match=words):
        open_source(name, "binidx")
