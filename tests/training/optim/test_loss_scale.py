"""The loss scale of fp16 in a training state, of torch and of DeepSpeed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.training.optim.loss_scale import capture_loss_scale, restore_loss_scale


def zero_engine(scale: float) -> SimpleNamespace:
    """As far as a loss scale goes: DeepSpeed's own scaler, in a ZeRO optimizer."""
    scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler").DynamicLossScaler(
        init_scale=scale, scale_window=4, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
    )
    return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))


def scales(engine: SimpleNamespace, overflows: list[bool]) -> list[float]:
    found = []
    for overflow in overflows:
        engine.optimizer.loss_scaler.update_scale(overflow)
        found.append(float(engine.optimizer.loss_scaler.cur_scale))
    return found


def test_deepspeeds_scale_goes_on_as_if_never_interrupted(monkeypatch: pytest.MonkeyPatch):
    # It prints an overflow on rank 0, and there is no process group here to ask.
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)
    before, after = [False, True, True, False, False], [False, False, True, False, False, True]
    whole = zero_engine(2.0**16)
    scales(whole, before)
    saved = capture_loss_scale(None, whole)
    # plain values, which a training state takes
    content_digest(saved)
    expected = scales(whole, after)
    again = zero_engine(2.0**16)
    restore_loss_scale(saved, None, again)
    assert scales(again, after) == expected
    assert expected[0] != 2.0**16, "the scale must have moved for this to mean anything"


def test_torchs_scale_comes_back():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    saved = capture_loss_scale(scaler, None)
    again = torch.amp.GradScaler("cpu")
    restore_loss_scale(saved, again, None)
    assert again.state_dict() == scaler.state_dict() and again.get_scale() == 1024.0


def test_a_run_that_changes_its_strategy_takes_over_the_scale():
    scaler, engine = torch.amp.GradScaler("cpu", init_scale=1024.0), zero_engine(8.0)
    restore_loss_scale(capture_loss_scale(scaler, None), None, engine)
    assert engine.optimizer.loss_scaler.cur_scale == 1024.0
    other = torch.amp.GradScaler("cpu")
    restore_loss_scale(capture_loss_scale(None, engine), other, None)
    assert other.get_scale() == 1024.0


def test_without_a_scale_there_is_nothing_to_save():
    # bf16 and fp32 under DeepSpeed: a scaler that stays at 1
    fixed = SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=SimpleNamespace(cur_scale=1)))
    assert capture_loss_scale(None, fixed) is None and capture_loss_scale(None, None) is None
    restore_loss_scale(None, torch.amp.GradScaler("cpu"), None)
    restore_loss_scale({"scale": 4.0}, None, fixed)
    assert fixed.optimizer.loss_scaler.cur_scale == 1
