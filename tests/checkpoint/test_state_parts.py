"""Parts on their way to the disk and back: digested as they pass, read an entry at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem

from rwkv_train.checkpoint import digest, part_tensors, state_manifest, state_parts
from rwkv_train.checkpoint.lazy_tensors import copied_to, picked, write_into
from rwkv_train.checkpoint.part_tensors import PartTensors
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.state_folder import read_parts
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.checkpoint.state_parts import part_name, write_part
from rwkv_train.errors import CheckpointError
from tests.checkpoint.small_states import save_small_folder, shares, small_state


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartTensors:
    """Those of a state of three parts, in entries of two elements; no tensor is read as a whole."""
    monkeypatch.setattr(state_parts, "_ENTRY_BYTES", 8)
    save_small_folder(tmp_path / "rwkv-1.state", small_state(7), 3)

    def whole(tensors: PartTensors, name: str) -> None:
        raise AssertionError(f"{name} is read as a whole")

    monkeypatch.setattr(PartTensors, "_whole", whole)
    return load_state(tmp_path / "rwkv-1.state")["weights"]


def test_a_part_is_described_without_being_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        for module in (digest, state_manifest):
            patch.setattr(module, "file_digest", None)
        found = write_part(tmp_path, 0, shares(small_state(7), 0, 1), {"step": 7})
    assert found == PartFile.of(tmp_path / part_name(0))
    assert found.size > 1000


class Lying:
    """A disk that keeps one bit otherwise than it was given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, content: Any) -> int:
        kept = bytearray(content)
        if len(kept) == 24:
            kept[5] ^= 1
        return self._file.write(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_what_a_disk_has_changed_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    create = FileSystem.create_stream

    @contextmanager
    def changed(files: FileSystem, path: Path, mode: str) -> Iterator[Any]:
        with create(files, path, mode) as file:
            yield Lying(file)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "create_stream", changed)
        save_small_folder(tmp_path / "rwkv-1.state", small_state(7), 1)
    assert not torch.equal(
        read_parts(tmp_path / "rwkv-1.state")["weights"]["a"], small_state(7)["weights"]["a"]
    )
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is not the one that was saved"):
        load_state(tmp_path / "rwkv-1.state")


def test_a_tensor_is_read_into_what_is_there(weights: PartTensors):
    expected = small_state(7)["weights"]["a"]
    target = torch.zeros(3, 2, dtype=torch.bfloat16)
    write_into(target, weights, "a")
    assert torch.equal(target, expected.bfloat16().view(3, 2))
    middle = torch.zeros(6)
    write_into(middle[1:4], picked(weights, ["a"]), "a", 2)
    assert middle.tolist() == [0, 9, 10, 11, 0, 0]
    for tensors in (weights, small_state(7)["weights"]):
        copy = copied_to(torch.device("cpu"), tensors, "b")
        assert copy.shape == () and copy == torch.tensor(0.1)


def test_a_tensor_is_converted_while_it_is_read(tmp_path: Path):
    save_small_folder(tmp_path / "rwkv-1.state", small_state(7), 3)
    found = read_parts(tmp_path / "rwkv-1.state")["weights"].converted(torch.bfloat16)
    assert found.outlines["a"].dtype == torch.bfloat16
    for name, value in small_state(7)["weights"].items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], value.bfloat16())


def test_more_parts_than_a_process_may_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part_tensors, "_OPEN", 2)
    save_small_folder(tmp_path / "rwkv-1.state", small_state(7), 6)
    before = len([*Path("/proc/self/fd").iterdir()])
    state = load_state(tmp_path / "rwkv-1.state")
    moments = [state["moments"][key]["a"] for key in ("exp_avg", "exp_avg_sq")]
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 2
    expected = small_state(7)
    assert torch.equal(state["weights"]["a"], expected["weights"]["a"])
    assert all(torch.equal(found, torch.ones(2, 3)) for found in moments)


def test_a_part_that_is_cut_while_it_is_read_is_a_fault_and_no_end(
    tmp_path: Path, weights: PartTensors
):
    os.truncate(tmp_path / "rwkv-1.state" / part_name(2), 100)
    write_into(torch.empty(2), weights, "a")
    with pytest.raises(CheckpointError, match=r"__2_0\.distcp is damaged: .*ends within"):
        write_into(torch.empty(6), weights, "a")


# Of 24 weights of 4 MiB each in two parts; a small state first, for all that a first use takes.
# Prints what the peak grew by.
_WRITING = """
import sys
from pathlib import Path
import torch
from rwkv_train.checkpoint.weights_from_parts import main
from tests.checkpoint.small_states import save_small_folder, small_state
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
folder = Path(sys.argv[1])
grown = []
for name in ("small", "large"):
    path = folder / f"rwkv-step-{len(grown)}.state"
    before = peak()
    assert main([str(path), str(folder / f"{name}.pth"), "bf16", "{}"]) == 0
    grown.append(peak() - before)
print(grown[-1])
"""


def test_the_weights_are_written_in_constant_memory(tmp_path: Path):
    save_small_folder(tmp_path / "rwkv-step-0.state", small_state(1))
    large = small_state(1)
    large["weights"] = {f"w{number}": torch.full((1 << 20,), number / 8) for number in range(24)}
    large["moments"] = {}
    save_small_folder(tmp_path / "rwkv-step-1.state", large)
    with subprocess.Popen(
        [sys.executable, "-c", _WRITING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        grown = int(process.stdout.read().splitlines()[-1])
    # one tensor in bf16, entries on their way and buffers; all tensors in bf16 are 48 MiB more
    assert grown < 40 << 20
    assert (tmp_path / "large.pth").stat().st_size > 24 << 21
    found = torch.load(tmp_path / "large.pth", weights_only=True)
    assert all(torch.equal(found[n], v.bfloat16()) for n, v in large["weights"].items())
