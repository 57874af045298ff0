"""Two processes add up numbers by gloo; what fails or is slow is named."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from rwkv_train.doctor import rings as module
from rwkv_train.doctor.check_runner import make_check
from rwkv_train.doctor.check_table import CHECKS
from rwkv_train.doctor.rings import check_gloo, check_nccl
from tests.doctor.planted import fault_of, only


def test_two_processes_add_up_numbers(tmp_path: Path):
    (check,) = [check for check in CHECKS if check.name == "gloo"]
    # In a child, as the doctor makes it: this process may have a group from an earlier test.
    (found,) = make_check(check, tmp_path, lambda step: None)
    # It may be slow here, beside other tests.
    assert found.level in ("ok", "warn"), found
    assert found.measured["processes"] == 2 and found.measured["bytes_per_s"] > 0


def test_another_process_that_does_not_come_is_a_fault(monkeypatch):
    monkeypatch.setattr(module, "_LIMIT_S", 0.3)
    monkeypatch.setattr(module, "_others", lambda *words: nullcontext())
    found = fault_of(check_gloo)
    assert "2 processes cannot work together by gloo" in found.found
    assert "iptables" in found.remedy


def test_a_slow_ring_is_named_and_one_card_has_none():
    slow = module._judged("gloo", 2, 10.0)
    assert slow.level == "warn" and "at 0.00 GB/s: slow" in slow.found
    assert module._judged("nccl", 1, 10.0).found == "nccl starts on the one card"


def test_nccl_is_for_cards(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(check_nccl, Path()).level == "skip"
