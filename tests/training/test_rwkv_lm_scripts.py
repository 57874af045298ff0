"""RWKV-LM's own command lines train to the end, and its project folders go on.

Changed in the lines are sizes, data, the accelerator and the number of devices. What they do with
wandb is decided by WANDB_MODE, as there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import generate
import train
from rwkv_train.models.backbone import RWKV
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.models.tiny import tiny_model
from tests.training.runs import loss_steps, losses, start, start_cold, weights
from tests.training.rwkv_lm_lines import (
    PREPARE,
    RUN,
    TUNE_STATES,
    V4NEO_FINETUNE,
    V4NEO_FROM_TEXT,
    changed,
)


def small(corpus: Path, folder: Path, testing: str) -> dict[str, object]:
    """What a tiny model on the test corpus needs; the last three as make_data.py prints them."""
    return {
        "data_file": corpus,
        "proj_dir": folder,
        "my_testing": testing,
        "n_layer": 2,
        "n_embd": 64,
        "vocab_size": 257,
        "accelerator": "cpu",
        "ctx_len": 32,
        "my_exit_tokens": 17887,
        "magic_prime": 557,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "testing", "is_cold"),
    # One as a shell starts it, on one device under ZeRO; the others differ in the model.
    [("v5", "x060", False), ("v5", "x070", False), ("v7", "x070", True)],
    ids=lambda value: value if isinstance(value, str) else ("warm", "cold")[value],
)
def test_the_demo_scripts_prepare_and_train_to_the_end(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generation: str,
    testing: str,
    is_cold: bool,
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = small(corpus, tmp_path, testing)
    assert train.main(changed(PREPARE[generation], **options)) == 0
    initial = weights(tmp_path / "rwkv-init.pth")
    assert {value.dtype for value in initial.values()} == {torch.bfloat16}
    begin = start_cold if is_cold else start
    ended = begin("train.py", *changed(RUN[generation], **options))
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    # 17887 tokens at 16 x 32 a step
    found = losses(tmp_path)
    assert list(found) == list(range(35))
    assert found[34] < found[0] - 1.5
    final = weights(tmp_path / "rwkv-final.pth")
    assert list(final) == list(initial)
    assert {name: value.shape for name, value in final.items()} == {
        name: value.shape for name, value in initial.items()
    }
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_v4neo_trains_on_the_characters_of_a_text_and_writes_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = tmp_path / "enwik8"
    text.write_bytes("Grüße,\r\nWelt! 世界\n".encode() * 40)
    ended = start(
        "train.py",
        *changed(
            V4NEO_FROM_TEXT,
            proj_dir=tmp_path / "out",
            data_file=text,
            my_testing="",
            ctx_len=32,
            n_layer=2,
            n_embd=64,
            accelerator="cpu",
            max_steps=3,
            my_pile_stage=0,
        ),
    )
    assert ended.returncode == 0, ended.stderr
    characters = sorted(set("Grüße,\nWelt! 世界\n"))
    saved = json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8"))
    assert saved == {str(number): c for number, c in enumerate(characters)}
    assert loss_steps(tmp_path / "out") == [0, 1, 2]
    final = weights(tmp_path / "out" / "rwkv-0.pth")
    assert final["emb.weight"].shape == (len(characters), 64)
    assert "blocks.1.att.time_first" in final
    model = ["--load_model", str(tmp_path / "out" / "rwkv-0.pth"), "--max_tokens", "9"]
    assert generate.main([*model, "Grüße"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Grüße") and set(text) <= set(characters) and len(text) >= 5 + 9


def test_v4neo_trains_on_text_that_it_makes_up_without_a_file(tmp_path: Path):
    line = changed(
        V4NEO_FROM_TEXT,
        proj_dir=tmp_path,
        data_file="",
        data_type="dummy",
        ctx_len=32,
        n_layer=1,
        n_embd=32,
        accelerator="cpu",
        max_steps=2,
        my_pile_stage=0,
        strategy="auto",
        precision="fp32",
    )
    assert train.main(line) == 0
    assert loss_steps(tmp_path) == [0, 1]
    assert len(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))) == 13


@pytest.mark.slow
def test_the_states_alone_are_tuned(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    base = tiny_model("6", vocab_size=257, head_size=64)
    torch.save({k: v.bfloat16() for k, v in base.state_dict().items()}, tmp_path / "rwkv-init.pth")
    options = {**small(corpus, tmp_path, "x060"), "my_exit_tokens": 4 * 16 * 32}
    ended = start("train.py", *changed(TUNE_STATES, **options, lr_init=1, lr_final=0.01))
    assert ended.returncode == 0, ended.stderr
    assert loss_steps(tmp_path) == [0, 1, 2, 3]
    final = weights(tmp_path / "rwkv-final.pth")
    assert final and all("time_sta" in name for name in final)
    assert any(value.any() for value in final.values())


@pytest.mark.slow
def test_v4neo_finetunes_on_a_numpy_file(tmp_path: Path):
    base = tiny_model("4")
    torch.save({k: v.bfloat16() for k, v in base.state_dict().items()}, tmp_path / "base.pth")
    np.save(tmp_path / "train.npy", np.arange(3000, dtype=np.uint16) % 50)
    ended = start(
        "train.py",
        *changed(
            V4NEO_FINETUNE,
            load_model=tmp_path / "base.pth",
            data_file=tmp_path / "train.npy",
            proj_dir=tmp_path / "out",
            vocab_size=50,
            ctx_len=32,
            n_layer=2,
            n_embd=64,
            accelerator="cpu",
            devices=1,
            max_steps=4,
            lr_init="1e-3",
            lr_final="1e-3",
        ),
    )
    assert ended.returncode == 0, ended.stderr
    found = losses(tmp_path / "out")
    assert list(found) == [0, 1, 2, 3] and found[3] < found[0]
    assert all(record["lr"] == 1e-3 for record in read_metrics(tmp_path / "out"))


def folder_of_rwkv_lm(folder: Path, model: RWKV) -> None:
    """As RWKV-LM leaves it: bf16, a wrapper's prefix, no training states, and a stranger."""
    tensors = {f"_forward_module.{k}": v.bfloat16() for k, v in model.state_dict().items()}
    for name in ("rwkv-init.pth", "rwkv-0.pth", "rwkv-2.pth"):
        torch.save(tensors, folder / name)
    (folder / "rwkv_base.pth").write_bytes(b"not looked at")
    (folder / "train_log.txt").write_text("NEW RUN 2025-04-24-02-20-11\n")


@pytest.mark.parametrize(
    ("generation", "testing", "version", "ramp"), [("v5", "x060", "6", 30), ("v7", "x070", "7", 10)]
)
def test_a_project_folder_of_rwkv_lm_goes_on(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    generation: str,
    testing: str,
    version: str,
    ramp: int,
):
    folder_of_rwkv_lm(tmp_path, tiny_model(version, vocab_size=257, head_size=64))
    # Mini-epochs of 40320 samples: after rwkv-2.pth comes step 3 x 40320 / 16.
    first = 3 * 40320 // 16
    argv = changed(
        RUN[generation],
        **{
            **small(corpus, tmp_path, testing),
            "my_exit_tokens": (first + 3) * 16 * 32,
            "warmup_steps": -1,
            "wandb": "",
            "strategy": "auto",
        },
    )
    assert train.main(argv) == 0
    assert "rwkv-2.pth has no training state next to it" in capsys.readouterr().out
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [first, first + 1, first + 2]
    # at the end of the cosine the rate is lr_final; the ramp begins at a hundredth of it
    for number, record in enumerate(records):
        assert record["lr"] == pytest.approx(6e-5 * (0.01 + 0.99 * number / ramp), rel=1e-3)
    final = weights(tmp_path / "rwkv-final.pth")
    assert not any(name.startswith("_forward_module.") for name in final)
    log = (tmp_path / "train_log.txt").read_text()
    assert log.startswith("NEW RUN 2025-04-24-02-20-11\nNEW RUN ")
    assert log.splitlines()[-1].startswith("3 ") and log.splitlines()[-1].endswith(" 0")
    assert (tmp_path / "rwkv_base.pth").read_bytes() == b"not looked at"
