"""Cards that are there and cannot be used are told; those that are hidden or absent are not."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rwkv_train import find_gpus as module
from rwkv_train.find_gpus import find_gpus
from tests.checkout import ROOT

CARD = "echo 'NVIDIA H100, with comma, 535.183.01'"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets up a machine that torch sees no card of; its nvidia-smi is a script with these words."""
    monkeypatch.setattr(module, "KERNEL_MODULE", tmp_path / "nvidia")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def set_up(words: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{words}\n")
        script.chmod(0o755)

    return set_up


def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed(machine):
    machine(CARD)
    fault = find_gpus().fault
    assert "driver 535.183.01 of NVIDIA H100, with comma is too old" in fault
    assert "CUDA 13.0: it needs 580 or newer" in fault


def test_a_torch_for_cpus_beside_a_card_is_named(machine, monkeypatch):
    machine(CARD)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built for CPUs; install a CUDA build of torch" in find_gpus().fault


def test_what_torch_says_itself_is_told_where_the_driver_would_do(machine, monkeypatch):
    machine("echo 'NVIDIA H100, 580.65.06'")

    def unavailable() -> bool:
        warnings.warn("CUDA initialization: CUDA unknown\n error", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert "torch cannot use it: CUDA initialization: CUDA unknown error" in find_gpus().fault


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_hidden_cards_are_no_fault(machine, monkeypatch, hidden):
    machine(CARD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = find_gpus()
    assert found.fault is None
    assert "CUDA_VISIBLE_DEVICES hides" in found.reason


def test_a_number_beyond_the_cards_is_a_fault(machine, monkeypatch):
    machine("echo 'NVIDIA H100, 580.65.06'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "CUDA_VISIBLE_DEVICES=1 begins with a card that is not there" in find_gpus().fault


@pytest.mark.parametrize(
    "words",
    [
        "echo 'No devices were found'; exit 6",
        "echo 'cannot communicate' >&2; exit 9",
        "echo 'Segmentation, fault'",
        "head -c 300 /dev/urandom",
    ],
)
def test_a_driver_without_a_card_is_no_fault_but_told(machine, words):
    machine(words)
    found = find_gpus()
    assert found.fault is None
    assert "nvidia-smi: " in found.reason


@pytest.mark.parametrize(
    "words", ["echo 'version mismatch' >&2; exit 18", "exec sleep 5", "sleep 5; exit"]
)
def test_an_nvidia_smi_that_fails_or_hangs_beside_a_card_is_a_fault(
    machine, monkeypatch, tmp_path, words
):
    machine(words)
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    (tmp_path / "nvidia" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    fault = find_gpus().fault
    assert "the card at 0000:01:00.0 cannot be used: nvidia-smi" in fault


def test_no_driver_is_no_news(machine):
    assert find_gpus() == module.FoundGpus()


def test_the_oldest_of_several_cards_decides_about_bf16(monkeypatch):
    cards = [("H100", (9, 0)), ("T4", (7, 5)), ("A100", (8, 0))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: cards[n][1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: cards[n][0])
    found = find_gpus()
    assert (found.count, found.has_bf16) == (3, False)
    assert found.oldest == "T4 (compute capability 7.5)"


def test_the_drivers_count_is_not_believed_where_cuda_does_not_start(machine, monkeypatch):
    """The count is the driver's, which answers although it is too old for CUDA."""
    machine(CARD)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_gpus().count == 0


def ended(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in the checkout, on a machine whose nvidia-smi shows a card."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{CARD}\n")
    script.chmod(0o755)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that torch sees no GPU of")
def test_train_refuses_to_fall_back_to_the_cpu_in_silence(tmp_path):
    flags = ("--proj_dir", str(tmp_path / "run"), "--data_type", "dummy", "--vocab_size", "13")
    refused = ended("train.py", *flags, folder=tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: --accelerator auto: ")
    assert "NVIDIA H100" in line and "give --accelerator cpu" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that torch sees no GPU of")
def test_scripts_are_told_what_there_is(tmp_path):
    program = ("-m", "rwkv_train.find_gpus")
    path = str(ROOT / "src")
    assert ended(*program, folder=tmp_path, PYTHONPATH=path).returncode == 2
    hidden = ended(*program, folder=tmp_path, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    assert (hidden.returncode, hidden.stdout) == (0, "cpu\n")
