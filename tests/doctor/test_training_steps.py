"""Every version learns one batch by heart; one that does not is a fault."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.config.versions import VERSIONS
from rwkv_train.doctor import training_steps as module
from rwkv_train.doctor.training_steps import check_training
from rwkv_train.training.whole_step import TimedShape
from tests.doctor.planted import findings

SHAPE = TimedShape(1, 64, 64, 16, 2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes some steps of a tiny model."""
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "LOW_SHARE", 0.0)
    monkeypatch.setattr(module, "CPU_SHAPE", SHAPE)
    # It sets who multiplies in this process, for good.
    monkeypatch.setattr("rwkv_train.training.fp32_products.choose_fp32_products", lambda: None)


def test_every_version_learns_and_its_speed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_rng_state()
    *versions, bf16 = findings(check_training(tmp_path))
    assert [found.measured["version"] for found in versions] == list(VERSIONS)
    for found in versions:
        assert found.level == "ok", found
        first, last = found.measured["losses"]
        # Of 64 equally likely tokens, before anything is learnt: ln 64.
        assert first == pytest.approx(4.16, abs=0.3) and last < first
        assert found.measured["tokens_per_s"] > 0 and found.measured["product_share"] > 0
    assert "times the speed of fp32" in bf16.found
    assert bool((torch.get_rng_state() == before).all())


@pytest.mark.parametrize(
    ("losses", "level", "told"),
    [
        ([4.0, float("nan")], "fault", "a loss that is no number"),
        ([4.0, 4.0], "fault", "the loss does not fall (4.000 to 4.000 in 2 steps"),
        ([4.0, 3.0], "ok", "320 tokens/s (L1 D64 V64, 2 x 16), 10% of what products reach"),
    ],
)
def test_losses_and_speed_are_judged(monkeypatch, losses, level, told):
    times = module._Times(losses, step_s=0.1, product_flops_per_s=1e9, step_flops=1e7)
    monkeypatch.setattr(module, "_train", lambda *words: times)
    found = module._judge("7", CPU, torch.float32, SHAPE)
    assert found.level == level and told in found.found


def test_a_share_that_is_low_is_named(monkeypatch):
    monkeypatch.setattr(module, "LOW_SHARE", 0.05)
    times = module._Times([4.0, 3.0], step_s=1.0, product_flops_per_s=1e9, step_flops=1e7)
    monkeypatch.setattr(module, "_train", lambda *words: times)
    found = module._judge("7", CPU, torch.float32, SHAPE)
    assert found.level == "warn" and "see the checks load" in found.remedy


def test_a_version_that_does_not_train_is_a_fault(monkeypatch):
    def fails(*words):
        raise RuntimeError("illegal instruction\nin a library")

    monkeypatch.setattr(module, "_train", fails)
    found = module._judge("7", CPU, torch.float32, SHAPE)
    assert found.found == (
        "RWKV-7 on cpu does not train: RuntimeError: illegal instruction in a library"
    )
