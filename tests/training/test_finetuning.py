"""From conversations to a model that answers: only the answers are learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import make_data
import train
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.inference import __main__ as inference
from rwkv_train.inference.loading import load_model

PROMPT = "What does a recurrent network keep?"
ANSWER = "A state of constant size."


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same question and answer again and again, one to a sample."""
    folder = tmp_path_factory.mktemp("chats")
    row = {"conversations": [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": ANSWER}]}
    (folder / "in.jsonl").write_text(json.dumps(row))
    assert (
        make_data.main(
            [
                str(folder / "in.jsonl"),
                "8",
                "80",
                "--output",
                str(folder / "chats"),
                "--tokenizer",
                "bytes",
                "--chat_template",
                "world",
            ]
        )
        == 0
    )
    return folder / "chats"


def trained(chats: Path, folder: Path, **changes: object) -> tuple[float, float]:
    """Mean cross entropy of the prompt's and of the answer's tokens after a short run."""
    pair = Binidx(chats)
    T = int(pair.sizes[0])
    flags = {
        "proj_dir": folder,
        "data_file": chats,
        "rwkv_version": 7,
        "n_layer": 2,
        "n_embd": 64,
        "head_size": 32,
        "ctx_len": T,
        "micro_bsz": 1,
        "exit_tokens": 60 * T,
        "lr_init": "6e-3",
        "lr_final": "1e-3",
        "warmup_steps": 5,
        "epoch_steps": 1000,
        "accelerator": "cpu",
        "devices": 1,
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
        "wkv_backend": "chunked",
        "reset_at_documents": 1,
        **changes,
    }
    assert train.main([word for k, v in flags.items() for word in (f"--{k}", str(v))]) == 0
    model = load_model(folder / "rwkv-final.pth", device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.from_numpy(pair.item(0))
    ce = functional.cross_entropy(model(ids[None, :-1])[0][0], ids[1:], reduction="none")
    # The target t is token t + 1; the answer begins behind "Assistant:".
    first = len(f"User: {PROMPT}\n\nAssistant:") - 1
    assert len(ce) - first == len(f" {ANSWER}\n\n") + 1
    return ce[:first].mean().item(), ce[first:].mean().item()


@pytest.mark.slow
def test_a_model_learns_to_answer_and_not_to_ask(
    chats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    asked, answered = trained(chats, tmp_path / "masked", loss_mask="on")
    assert answered < 0.05
    # Nothing ever told it what questions look like: worse than a guess among 257 bytes.
    assert asked > 5.5
    asked_too, answered_too = trained(chats, tmp_path / "whole", loss_mask="off")
    assert asked_too < 0.5 and answered_too < 0.05
    capfd.readouterr()
    assert (
        inference.main(
            [
                "--load_model",
                str(tmp_path / "masked" / "rwkv-final.pth"),
                "--temperature",
                "0",
                "--max_tokens",
                "99",
                f"User: {PROMPT}\n\nAssistant:",
            ]
        )
        == 0
    )
    # It stops by itself: behind the answer's end it writes token 0.
    assert capfd.readouterr().out == f"User: {PROMPT}\n\nAssistant: {ANSWER}\n\n\n"
