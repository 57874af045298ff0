"""`rwkv-export`: what is wrong is told in one line with status 2, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.export import __main__ as command
from rwkv_train.export.target_table import TARGETS
from tests.export.exported_models import random_weights
from tests.models.tiny import tiny_model


def test_the_command_line_names_every_target_and_every_number_format():
    assert tuple(command.TARGET_WORDS) == tuple(TARGETS)
    formats = {name for target in TARGETS.values() for name in target.precisions}
    assert {"auto", *formats} == set(command.PRECISIONS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    save_weights(tmp_path / "m6.pth", random_weights("6").state_dict(), torch.bfloat16)
    save_weights(tmp_path / "m4.pth", random_weights("4", dim_att=128).state_dict(), torch.float32)
    tuned = tiny_model("6", options={"train_states": True}).state_dict()
    states = {key: value for key, value in tuned.items() if key.endswith("time_state")}
    save_weights(tmp_path / "states.pth", states, torch.float32)
    (tmp_path / "taken.pth").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", (tmp_path / "taken.pth").open())
    return tmp_path


def test_it_writes_in_the_model_s_own_format(folder: Path, capsys):
    words = ["--load_model", "m6.pth", "--to", "safetensors", "--output", "x.safetensors"]
    assert command.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("m6.pth: RWKV-6, 2 layers, width 64, 257 tokens, bf16")
    assert said[-1].startswith("wrote x.safetensors: a plain file of weights, bf16, ")
    before, after = load_weights("m6.pth"), load_weights("x.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert Path("x.safetensors.README.md").read_text().startswith("---\nlicense: unknown\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to pth --output x.pth", "required: --load_model"),
        ("--load_model m6.pth --output x.pth", "required: --to"),
        ("--load_model m6.pth --to pth", "required: --output"),
        ("--load_model m6.pth --to onnx --output x", "invalid choice: 'onnx'"),
        ("--load_model m6.pth --to pth --output x.pth --lroa y", "perhaps you meant --lora"),
        ("--load_model m6.pth --to pth --output x.bin", "must end in .pth"),
        ("--load_model m6.pth --to pth --output taken.pth", "taken.pth exists already"),
        ("--load_model m6.pth --to pth --output no/x.pth", "no is no folder"),
        ("--load_model m6.pth --to pth --output /proc/x.pth", "cannot write /proc/x.pth: "),
        ("--load_model none.pth --to pth --output x.pth", "none.pth does not exist"),
        ("--load_model taken.pth --to pth --output x.pth", "taken.pth is text"),
        ("--load_model states.pth --to pth --output x.pth", "as --load_states"),
        ("--load_model m6.pth --to pth --output x.pth --precision fp8", "invalid choice: 'fp8'"),
        ("--load_model m6.pth --to transformers --output x", "RWKV-4 only, this is RWKV-6"),
        ("--load_model m4.pth --to transformers --output x", "--dim_att (128) is not"),
        ("--load_model m6.pth --to pth --output x.pth --check 2", "invalid choice: 2"),
        ("--load_model m6.pth --to pth --output x.pth --lora m6.pth", "no low-rank adapter"),
        ("--load_model m6.pth --to pth --output x.pth --load_states m6.pth", "holds more than"),
        ("--load_model m6.pth --to pth --output x.pth --tokenizer world", "65536 tokens"),
        ("--load_model m6.pth --to pth --output x.pth --tokenizer none", "neither 'world'"),
        ("--load_model m6.pth --to pth --output x.pth --yes", "--yes belongs to --hub_push"),
        ("--load_model m6.pth --to pth --output x.pth --hub_public", "belongs to --hub_push"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder: Path, words: str, message: str, capsys):
    before = sorted(folder.iterdir())
    try:
        status = command.main(words.split())
    except SystemExit as leaving:
        status = leaving.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert sorted(folder.iterdir()) == before


def test_an_upload_is_refused_before_the_work_where_nobody_can_be_asked(folder: Path, capsys):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    words = ["--load_model", "m6.pth", "--to", "pth", "--output", "x.pth", "--hub_push", "a/b"]
    assert command.main(words) == 2
    assert "no terminal to answer at; give --yes" in capsys.readouterr().err
    assert not Path("x.pth").exists()


def test_help_imports_no_torch():
    # In this process torch is there already: what the module itself asks for is compared.
    own = {name for name in dir(command) if not name.startswith("_")}
    assert "torch" not in own and "torch" in sys.modules
