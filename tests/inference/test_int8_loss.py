"""Weights in int8 are asked for by a flag, and what they cost is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import rwkv_train
from rwkv_train.data.tokenize.characters import CharacterTokenizer
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.inference.__main__ import main
from rwkv_train.inference.int8_loss import MEASURED_TEXT, rounded_to_int8
from rwkv_train.models.int8 import Int8Linear
from tests.models.tiny import tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "rwkv-final.pth"
    torch.save(tiny_model("7", vocab_size=257).state_dict(), path)
    return path


def test_it_says_how_far_logits_and_loss_move():
    model = tiny_model("7", vocab_size=257).requires_grad_(False)
    tokens = torch.tensor([load_tokenizer("bytes").encode(MEASURED_TEXT)])
    before, _ = model(tokens)
    cost = rounded_to_int8(model, load_tokenizer("bytes"))
    after, _ = model(tokens)
    assert cost.tokens == len(MEASURED_TEXT.encode())
    assert cost.difference == pytest.approx(float((after - before).norm() / before.norm()))
    expected = [F.cross_entropy(z[0, :-1], tokens[0, 1:]) for z in (after, before)]
    assert [cost.loss, cost.loss_before] == pytest.approx([float(loss) for loss in expected])
    assert 0 < cost.difference < 0.1 and cost.loss != cost.loss_before


def test_a_vocabulary_without_the_text_is_measured_on_its_own_tokens():
    tokenizer = CharacterTokenizer("vocab.json", {0: "a", 1: "ж", 2: "б"})
    cost = rounded_to_int8(tiny_model("4").requires_grad_(False), tokenizer)
    assert cost.tokens == 3


def test_the_program_writes_with_int8_weights_and_tells_their_cost(
    checkpoint: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    command = ["--load_model", str(checkpoint), "--device", "cpu", "--max_tokens", "3", "Hello"]
    assert main([*command, "--weights", "int8", "--seed", "1"]) == 0
    assert capfd.readouterr().out.startswith("Hello")
    # Without pytest's own handler it is a line on stderr.
    (line,) = caplog.messages
    assert line.startswith("int8 weights: on a text of") and "nats a token" in line


def test_python_gets_the_rounded_model(checkpoint: Path):
    model = rwkv_train.load_model(checkpoint, device="cpu", weights="int8").model
    assert isinstance(model.head, Int8Linear) and model.head.weight.dtype == torch.int8
    with pytest.raises(ConfigError, match="weights is 'int4', expected one of float, int8"):
        rwkv_train.load_model(checkpoint, weights="int4")


def test_int8_on_a_gpu_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    there = "rwkv_train.inference.opening.device_and_precision"
    monkeypatch.setattr(there, lambda device, precision: ("cuda", "bf16"))
    with pytest.raises(ConfigError, match="int8 weights are for a CPU"):
        rwkv_train.load_model(checkpoint, device="cuda", weights="int8")
