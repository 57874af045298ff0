"""train.py --plan 1: the plan of a command line, from data and models on disk, without a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import train
from rwkv_train.config.load import load_config
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.planning.file_sizes import run_files
from rwkv_train.planning.planned_run import imagined_run
from rwkv_train.training.start.plan_only import gpu_models
from tests.checkout import ROOT


def listed(folder: Path) -> list[str]:
    """Returns the names of all files in a folder."""
    return sorted(path.name for path in folder.rglob("*"))


def test_a_plan_knows_the_data_and_writes_nothing(flags, corpus, tmp_path, capsys):
    before = listed(tmp_path)
    assert train.main(flags(plan=1, exit_tokens=None)) == 0
    out = capsys.readouterr().out
    assert listed(tmp_path) == before
    # The vocabulary is the manifest's, of bytes and the end of a text; all tokens in steps of 128.
    tokens = -(-Binidx(corpus).tokens // 128) * 128
    assert "RWKV-6, 2 layers, width 32" in out and "vocabulary 257" in out
    assert f"  {tokens / 1e3:.3g} k tokens of data" in out
    assert "rwkv-plan takes the same flags" in out and "--card" in out


def test_a_plan_reads_the_sizes_of_the_model_that_would_be_loaded(flags, tmp_path, capsys):
    assert train.main(flags(train_stage=1, data_file=None, vocab_size=300, n_layer=3)) == 0
    first = tmp_path / "out" / "rwkv-init.pth"
    assert first.is_file()
    capsys.readouterr()
    sizes = {"n_layer": None, "n_embd": None, "head_size": None, "rwkv_version": None}
    for found in ({}, {"load_model": first, "proj_dir": tmp_path / "other"}):
        assert train.main(flags(plan=1, **sizes, **found)) == 0
        assert "RWKV-6, 3 layers, width 32, heads of 32" in capsys.readouterr().out


def test_what_the_run_would_refuse_is_refused(flags, tmp_path, capsys):
    assert train.main(flags(plan=1, data_file=tmp_path / "missing")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "missing" in error


def test_a_model_that_lacks_a_file_is_named(flags, tmp_path, capsys):
    assert train.main(flags(plan=1, load_model=tmp_path / "M.pth")) == 2
    assert "M.pth" in capsys.readouterr().err


def test_it_answers_without_torch_where_no_checkpoint_is_read(tmp_path: Path):
    line = "--plan 1 --data_type dummy --n_layer 2 --n_embd 64 --vocab_size 99 --accelerator gpu"
    code = (
        "import sys, train; "
        f"status = train.main({[*line.split(), '--devices', '8', '--proj_dir', str(tmp_path)]}); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "x 8 devices" in done.stdout and "deepspeed_stage_2" in done.stdout


def test_the_cards_are_those_that_the_drivers_module_tells(tmp_path: Path):
    for number, name in enumerate(["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]):
        folder = tmp_path / f"0000:{number}"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n", encoding="utf-8")
    assert gpu_models(tmp_path) == ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]
    assert gpu_models(tmp_path / "nothing") == []


def test_a_card_that_is_there_is_planned_for(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "rwkv_train.training.start.plan_only.gpu_models", lambda: ["NVIDIA H100 80GB HBM3"] * 2
    )
    assert train.main(flags(plan=1, accelerator="auto", devices=None, strategy=None)) == 0
    out = capsys.readouterr().out
    assert out.startswith("accelerator gpu: 2 x NVIDIA H100 80GB HBM3\n")
    assert "x 2 devices" in out and "of 80.0 GiB, H100 SXM." in out


def test_files_of_a_run_are_as_large_as_planned(run_training, tmp_path):
    sizes = {"n_embd": 128, "head_size": 64, "vocab_size": 300, "rwkv_version": 5}
    assert run_training(max_steps=2, optimizer="muon", **sizes) == 0
    line = " ".join(f"--{name} {value}" for name, value in (sizes | {"n_layer": 2}).items())
    given = load_config(f"{line} --precision fp32 --optimizer muon".split())
    planned = run_files(imagined_run(given, model=None, tokens=None, has_bf16=True)[0])
    out = tmp_path / "out"
    (state,) = out.glob("*.state")
    weights = out / "rwkv-init.pth"
    # Around a tensor are its names and its place: some hundred bytes.
    room = 80 * 600 + 2**16
    assert planned.weights < weights.stat().st_size < planned.weights + room
    assert planned.state < state.stat().st_size < planned.state + 3 * room
