"""Wrong command lines: status 2, one clear line, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import make_data
from rwkv_train.ops.native import build, custom_ops
from tests.training.damaged_runs import Place
from tests.training.runs import start_cold

# What is changed in the command line, and the words its message must have. {root} is the place.
WRONG = {
    "unknown flag": (["--n_layr", "5"], ["--n_layr", "--n_layer"]),
    "no data": (["--data_file", "-"], ["--data_file", "make_data.py"]),
    "data elsewhere": (["--data_file", "{root}/nowhere"], ["nowhere", ".bin", ".idx"]),
    "data that is a text": (["--data_file", "{root}/data/text.jsonl"], ["text.jsonl", "make_data"]),
    "batch 0": (["--micro_bsz", "0"], ["--micro_bsz 0", "at least 1"]),
    "no context": (["--ctx_len", "0"], ["--ctx_len 0", "at least 1"]),
    "a text for a number": (["--lr_init", "fast"], ["--lr_init", "a number", "fast"]),
    "rate that is no number": (["--lr_init", "nan"], ["--lr_init nan", "finite"]),
    "width not a multiple": (["--n_embd", "33"], ["--n_embd 33", "multiple of 32", "32"]),
    "head that does not divide": (
        ["--proj_dir", "{root}/empty", "--head_size", "24"],
        ["--head_size 24", "32"],
    ),
    "layers of another model": (["--n_layer", "3"], ["--n_layer 3", "n_layer 2", "leave"]),
    "version of another model": (
        ["--rwkv_version", "7", "--head_size", "-"],
        ["--rwkv_version 7", "rwkv_version 6"],
    ),
    "vocabulary of another model": (
        ["--vocab_size", "300"],
        ["--vocab_size 300", "vocab_size 257"],
    ),
    "vocabulary below the data's": (
        ["--proj_dir", "{root}/empty", "--vocab_size", "100"],
        ["--vocab_size", "100", "257", "bytes"],
    ),
    "tokenizer of other data": (["--tokenizer", "world"], ["--tokenizer world", "bytes"]),
    "number that is no prime": (["--magic_prime", "100"], ["--magic_prime 100", "prime", "557"]),
    "prime of the wrong kind": (["--magic_prime", "7"], ["--magic_prime 7", "leaves 1", "557"]),
    "prime of other data": (["--magic_prime", "2926181"], ["--magic_prime 2926181", "557"]),
    "context longer than the data": (["--ctx_len", "9000"], ["--ctx_len 9000", "17887"]),
    "offset beyond the data": (["--sample_offset", "400"], ["--sample_offset 400", "17887"]),
    "no validation data": (
        ["--proj_dir", "{root}/empty", "--val_data_file", "{root}/nowhere"],
        ["--val_data_file", "nowhere.idx"],
    ),
    "another kind of file": (["--data_type", "numpy"], ["data/text", "no such file"]),
    "preparing twice": (["--train_stage", "1"], ["--train_stage 1", "rwkv-init.pth"]),
    "beginning anew on top": (["--train_stage", "0"], ["--train_stage 0", "rwkv-0.pth"]),
    "resuming from nothing": (
        ["--proj_dir", "{root}/empty", "--train_stage", "3"],
        ["--train_stage 3", "holds none"],
    ),
    "model that is not there": (
        ["--proj_dir", "{root}/empty", "--load_model", "{root}/no.pth"],
        ["no.pth", "does not exist"],
    ),
    "two beginnings": (
        ["--proj_dir", "{root}/begun", "--load_model", "{root}/paused/rwkv-0.pth"],
        ["--load_model", "rwkv-init.pth"],
    ),
    "mini-epoch out of order": (["--epoch_begin", "7"], ["--epoch_begin 7", "mini-epoch 1"]),
    "one device for two processes": (
        ["--strategy", "single_device", "--devices", "2"],
        ["single_device", "2"],
    ),
    "fp16 on a CPU": (["--precision", "fp16"], ["--precision fp16", "bf16 or fp32"]),
    "kernel of a GPU on a CPU": (
        ["--wkv_backend", "native:chunks"],
        ["wkv6", "'native:chunks'", "CPU", "'native'"],
    ),
    "kernel that is none": (["--wkv_backend", "native:chunk"], ["--wkv_backend", "native:chunks"]),
    "states of nothing": (
        ["--proj_dir", "{root}/empty", "--train_type", "states"],
        ["--train_type states", "--load_model"],
    ),
    "folder that is a file": (
        ["--proj_dir", "{root}/data/text.bin"],
        ["--proj_dir", "text.bin", "a file"],
    ),
    "folder below a file": (
        ["--proj_dir", "{root}/data/text.bin/out"],
        ["--proj_dir", "text.bin/out"],
    ),
    "configuration that is not there": (["--config", "{root}/no.yaml"], ["no.yaml"]),
    "configuration that is none": (["--config", "{root}/data/text.bin"], ["text.bin", "YAML"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_is_refused(place: Place, refused: Callable[..., str], name: str):
    flags, words = WRONG[name]
    flags = [flag.format(root=place.root) for flag in flags]
    line = refused(place.command("--proj_dir", place.paused, *flags))
    assert all(word in line for word in words), line


def test_kernels_asked_for_by_name_are_refused_where_there_is_no_compiler(
    place: Place, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(custom_ops, "_refusals", {})
    monkeypatch.setattr(build, "_outcomes", {})
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(build, "find_ninja", lambda: "ninja")
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refused(place.command("--proj_dir", place.paused, "--wkv_backend", "native"))
    assert "'native'" in line and "apt-get install g++" in line and "'auto'" in line


def spoil_text(place: Place) -> None:
    path = place.root / "data" / "text.jsonl"
    lines = path.read_text().splitlines()
    lines[41] = lines[41][:-2]
    path.write_text("\n".join(lines))


# What is done before, the command line of make_data.py, the words of the message.
CONVERSIONS = {
    "no such text": (None, ["{root}/no.jsonl", "1", "32"], ["no.jsonl"]),
    "a word for a number": (None, ["{text}", "twice", "32"], ["REPEATS", "twice"]),
    "too few arguments": (None, ["{text}"], ["REPEATS", "CTX_LEN"]),
    "no repetitions": (None, ["{text}", "0", "32", "--output", "{root}/new"], ["0"]),
    "no context": (None, ["{text}", "1", "0", "--output", "{root}/new"], ["CTX_LEN"]),
    "a line that is no json": (
        spoil_text,
        ["{text}", "1", "32", "--output", "{root}/new", "--tokenizer", "bytes"],
        ["text.jsonl", "42"],
    ),
    "another key": (
        None,
        ["{text}", "1", "32", "--output", "{root}/new", "--text_key", "body"],
        ["body", "text.jsonl"],
    ),
    "a tokenizer that is damaged": (
        lambda p: (p.root / "tokenizer.json").write_text('{"model": {"ty'),
        ["{text}", "1", "32", "--output", "{root}/new", "--tokenizer", "{root}/tokenizer.json"],
        ["tokenizer.json"],
    ),
    "a tokenizer that is not there": (
        None,
        ["{text}", "1", "32", "--output", "{root}/new", "--tokenizer", "{root}/x.json"],
        ["x.json", "world"],
    ),
    "data made of something else": (
        None,
        ["{text}", "2", "32", "--output", "{root}/data/text", "--tokenizer", "bytes"],
        ["data/text", "--overwrite"],
    ),
    "a folder that is a file": (
        None,
        ["{text}", "1", "32", "--output", "{text}/new", "--tokenizer", "bytes"],
        ["text.jsonl/new"],
    ),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_that_cannot_be_done_is_refused(
    place: Place, refused: Callable[..., str], name: str
):
    damage, argv, words = CONVERSIONS[name]
    if damage is not None:
        damage(place)
    text = place.root / "data" / "text.jsonl"
    line = refused([word.format(root=place.root, text=text) for word in argv], make_data.main)
    assert all(word in line for word in words), line


def test_the_programs_themselves_end_with_status_2_and_one_line(place: Place):
    before = place.snapshot()
    for program, argv in (
        ("train.py", place.command("--proj_dir", place.paused, "--n_layer", 3)),
        ("make_data.py", [str(place.root / "no.jsonl"), "1", "32"]),
    ):
        done = start_cold(program, *argv)
        assert (done.returncode, done.stdout) == (2, ""), program
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert place.snapshot() == before
