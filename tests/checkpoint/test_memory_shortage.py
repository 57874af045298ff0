"""What memory is too small for is neither damaged nor a fault of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.memory_shortage import write_fault
from rwkv_train.checkpoint.resume import list_states, save_state
from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.errors import CheckpointError, MemoryShortageError, exit_status

MAPPED = "unable to mmap 2293014528 bytes from file <out/rwkv-0.state>: Cannot allocate memory (12)"
ON_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


def fails(words: str):
    def instead(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    return instead


def test_an_intact_state_is_not_passed_over_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_state(tmp_path / "rwkv-0.state", {"step": 1, "weights": {"a": torch.ones(3)}})
    monkeypatch.setattr(torch, "load", fails(MAPPED))
    with pytest.raises(MemoryShortageError, match=r"rwkv-0.state cannot be read: out of memory; n"):
        list_states(tmp_path)
    # Nothing that the user gave is wrong.
    assert exit_status(MemoryShortageError("")) == 1
    monkeypatch.setattr(torch, "load", fails("invalid header or archive is corrupted"))
    assert "truncated or damaged" in list_states(tmp_path)[0].fault


def test_nor_are_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_weights(tmp_path / "rwkv-0.pth", {"a": torch.ones(3)}, torch.float32)
    monkeypatch.setattr(torch, "load", fails(ON_CPU))
    with pytest.raises(MemoryShortageError, match="nothing is wrong with the file"):
        load_weights(tmp_path / "rwkv-0.pth")


def test_a_file_that_cannot_be_written_for_it_does_not_ask_for_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "empty", fails(ON_CPU))
    with pytest.raises(CheckpointError) as caught:
        save_weights(tmp_path / "rwkv-0.pth", {"a": torch.ones(3)}, torch.float32)
    assert "rwkv-0.pth: out of memory; free memory, or see docs" in str(caught.value)
    full = write_fault(tmp_path, OSError(28, "No space left on device"))
    assert "No space left on device; free the disk or choose another --proj_dir" in str(full)
