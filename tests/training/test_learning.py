"""Every version learns a short text by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import make_data
import train
from rwkv_train.inference import __main__ as inference
from tests.training.runs import losses

# 199 bytes, with the end of the document 200 tokens
TEXT = (
    "A recurrent network reads one token after another and keeps all it knows of the past in a "
    "state of constant size; it can be trained on whole sequences at once, and it writes with one "
    "step for a token."
)[:199]


@pytest.fixture(scope="module")
def text_by_heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text eight times, so that every sample of 200 tokens is the whole of it."""
    folder = tmp_path_factory.mktemp("by-heart")
    assert len(TEXT.encode()) == 199
    (folder / "text.jsonl").write_text(json.dumps({"text": TEXT}))
    assert (
        make_data.main(
            [
                str(folder / "text.jsonl"),
                "8",
                "200",
                "--output",
                str(folder / "text"),
                "--tokenizer",
                "bytes",
            ]
        )
        == 0
    )
    return folder / "text"


@pytest.mark.slow
@pytest.mark.parametrize("version", "4567")
def test_a_text_of_200_tokens_is_learnt_by_heart(
    tmp_path: Path, text_by_heart: Path, capfd: pytest.CaptureFixture[str], version: str
):
    flags = {
        "proj_dir": tmp_path,
        "data_file": text_by_heart,
        "rwkv_version": version,
        "n_layer": 2,
        "n_embd": 64,
        "ctx_len": 200,
        "micro_bsz": 1,
        "exit_tokens": 80 * 200,
        "lr_init": "6e-3",
        "lr_final": "1e-3",
        "warmup_steps": 5,
        "weight_decay": "0.001",
        "accelerator": "cpu",
        "devices": 1,
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
        "epoch_steps": 1000,
        "wkv_backend": "chunked",
        **({} if version == "4" else {"head_size": 32}),
    }
    assert train.main([word for k, v in flags.items() for word in (f"--{k}", str(v))]) == 0
    found = losses(tmp_path)
    assert found[0] > 5.0
    assert max(list(found.values())[-5:]) < 0.05
    capfd.readouterr()
    assert (
        inference.main(
            [
                "--load_model",
                str(tmp_path / "rwkv-final.pth"),
                "--temperature",
                "0",
                "--max_tokens",
                "300",
                TEXT[:1],
            ]
        )
        == 0
    )
    assert capfd.readouterr().out == f"{TEXT}\n"
