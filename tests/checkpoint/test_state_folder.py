"""States in folders: listed, verified to the bit, read in parts, and by torch itself."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.element_boxes import boxes
from rwkv_train.checkpoint.lazy_tensors import shapes_of
from rwkv_train.checkpoint.part_tensors import PartTensors, element_run
from rwkv_train.checkpoint.resume import (
    copy_saved_state,
    list_states,
    load_state,
    resume_candidates,
    save_state,
    state_digest,
)
from rwkv_train.checkpoint.state_format import StateFormatError
from rwkv_train.checkpoint.state_manifest import read_state_manifest, write_state_manifest
from rwkv_train.errors import CheckpointError
from rwkv_train.files import publish, remove, restore_replaced
from tests.checkpoint.small_states import save_small_folder, small_state

LOST, TORN, OTHER = "__1_0.distcp is gone", "bytes instead of", "__1_0.distcp is not the one"


def in_memory(state: dict) -> dict:
    """The state with its tensors read, in dictionaries."""
    moments = {key: dict(values) for key, values in state["moments"].items()}
    return {**state, "weights": dict(state["weights"]), "moments": moments}


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (2, 1, 3, 2)])
def test_boxes_are_every_run_of_elements_in_its_order(shape: tuple[int, ...]):
    tensor = torch.arange(max(1, int(torch.tensor(shape).prod()))).reshape(shape)
    for first, last in itertools.combinations(range(tensor.numel() + 1), 2):
        found = []
        for box in boxes(shape, first, last):
            slices = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes))
            found += tensor[slices].flatten().tolist()
            assert [*box.run(shape)] == tensor[slices].flatten().tolist()
        assert found == [*range(first, last)]
    assert not [*boxes(shape, 0, 0)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_state_of_any_number_of_ranks_comes_back_as_it_was(tmp_path: Path, ranks: int):
    path = tmp_path / "rwkv-1.state"
    digest = save_small_folder(path, small_state(7), ranks)
    assert state_digest(path) == digest
    found = in_memory(load_state(path))
    assert found.pop("format") == 3
    expected = small_state(7)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert content_digest(found[key]) == content_digest(value), key
    assert {p.name for p in tmp_path.iterdir()} == {"rwkv-1.state"}


def test_elements_are_read_without_the_rest_and_without_the_folder(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7), 3)
    weights = load_state(path)["weights"]
    assert isinstance(weights, PartTensors)
    assert shapes_of(weights) == {"a": (2, 3), "b": ()} == shapes_of(dict(weights))
    assert element_run(weights, "a", 1, 5).tolist() == [8, 9, 10, 11]
    assert element_run(dict(weights), "a", 1, 5).tolist() == [8, 9, 10, 11]
    # what was sent to a machine is removed before it is used
    shutil.rmtree(path)
    assert element_run(weights, "a", 4, 6).tolist() == [11, 12]


def test_torch_reads_a_folder_by_itself(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7), 3)
    wanted = {"weights": {"a": torch.zeros(2, 3)}}
    torch_checkpoint.load(wanted, checkpoint_id=path, no_dist=True)
    assert torch.equal(wanted["weights"]["a"], small_state(7)["weights"]["a"])
    dcp_to_torch_save(path, tmp_path / "whole")
    whole = torch.load(tmp_path / "whole", weights_only=True)
    assert content_digest(whole["moments"]) == content_digest(small_state(7)["moments"])
    assert whole["step"] == 7


def test_folders_and_files_are_ordered_together(tmp_path: Path):
    save_small_folder(tmp_path / "rwkv-0.state", small_state(20))
    save_state(tmp_path / "rwkv-step-30.state", small_state(30))
    save_small_folder(tmp_path / "rwkv-step-40.state", small_state(40))
    (tmp_path / "rwkv-step-50.state").mkdir()
    (tmp_path / "rwkv-1.pth").mkdir()
    found = list_states(tmp_path)
    assert [file.path.name for file in found] == [
        *("rwkv-step-40.state", "rwkv-step-30.state", "rwkv-0.state", "rwkv-step-50.state")
    ]
    assert [file.position for file in found] == [400, 300, 200, None]
    assert "incomplete: it has no manifest.json" in found[-1].fault
    assert [c.state for c in resume_candidates(tmp_path)] == [tmp_path / "rwkv-0.state"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# What happens to the folder, given one of another save; words of what is said.
FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a part lost": (lambda p, o: (p / "__1_0.distcp").unlink(), LOST),
    "a part torn": (lambda p, o: cut(p / "__1_0.distcp"), TORN),
    "a bit of a part": (lambda p, o: flip(p / "__1_0.distcp"), OTHER),
    "a part of another save": (lambda p, o: shutil.copy(o / "__1_0.distcp", p), OTHER),
    "the list of another save": (lambda p, o: shutil.copy(o / ".metadata", p), "metadata"),
    "the manifest lost": (lambda p, o: (p / "manifest.json").unlink(), "no manifest.json"),
    "the manifest torn": (lambda p, o: cut(p / "manifest.json"), "manifest.json is truncated"),
    "a bit of the manifest": (lambda p, o: flip(p / "manifest.json"), "manifest.json is"),
    "the manifest of another save": (lambda p, o: shutil.copy(o / "manifest.json", p), "part __0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_as_it_was_written_is_named(tmp_path: Path, name: str):
    path, other = tmp_path / "rwkv-1.state", tmp_path / "rwkv-2.state"
    save_small_folder(path, small_state(7))
    save_small_folder(other, small_state(8, more="words"))
    change, words = FAULTS[name]
    change(path, other)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_state(path)
    assert str(path) in str(caught.value)


def test_every_byte_of_the_parts_counts(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7))
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 997):
            changed = bytes([content[position] ^ 0x10])
            file.write_bytes(content[:position] + changed + content[position + 1 :])
            with pytest.raises(CheckpointError):
                load_state(path)
        file.write_bytes(content)
    load_state(path)


class Calling:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def test_nothing_in_a_folder_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7))
    (path / ".metadata").write_bytes(pickle.dumps(Calling()))
    manifest = read_state_manifest(path)
    parts = dict(manifest.parts)
    parts[".metadata"] = type(parts[".metadata"]).of(path / ".metadata")
    write_state_manifest(path, parts, manifest.about)
    with pytest.raises(CheckpointError, match=r"names posix\.system"):
        load_state(path)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_finite_and_other_formats_are_refused(tmp_path: Path):
    path, bad = tmp_path / "rwkv-1.state", small_state(7)
    bad["weights"]["a"][1, 1] = torch.nan
    save_small_folder(path, bad)
    with pytest.raises(CheckpointError, match="a is not finite"):
        load_state(path)
    manifest = read_state_manifest(path)
    write_state_manifest(path, manifest.parts, {**manifest.about, "format": 4})
    with pytest.raises(StateFormatError, match="format 4, this version reads format 3"):
        load_state(path)
    assert list_states(tmp_path)[0].other_format


def test_a_copy_has_its_own_digest_of_the_weights(tmp_path: Path):
    path, copy = tmp_path / "rwkv-1.state", tmp_path / "rwkv-final.state"
    save_small_folder(path, small_state(7))
    save_state(copy, small_state(3))
    copy_saved_state({}, path, copy, {"weights_digest": "abc"})
    found = load_state(copy)
    assert (found["step"], found["weights_digest"]) == (7, "abc")
    assert "weights_digest" not in load_state(path)


@pytest.mark.parametrize("before", ["a file", "a folder"])
def test_what_is_replaced_comes_back_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
):
    path, new = tmp_path / "rwkv-1.state", tmp_path / "rwkv-2.state"
    (save_state if before == "a file" else save_small_folder)(path, small_state(7))
    save_small_folder(new, small_state(8))
    rename, renamed = Path.rename, []

    def killed(source: Path, target: Path) -> Path:
        renamed.append(source.name)
        if len(renamed) > 1:
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(new, path)
    # also its bringing back was interrupted, as a kill would
    assert not path.exists() and len(renamed) == 3
    restore_replaced(tmp_path)
    assert load_state(path)["step"] == 7
    publish(new, path)
    assert load_state(path)["step"] == 8
    assert {p.name for p in tmp_path.iterdir()} == {"rwkv-1.state"}


def test_a_file_takes_the_place_of_a_folder(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7))
    save_state(path, small_state(8))
    assert path.is_file() and load_state(path)["step"] == 8
    assert {p.name for p in tmp_path.iterdir()} == {"rwkv-1.state"}


def test_a_folder_that_is_being_removed_has_no_states_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "rwkv-1.state"
    save_small_folder(path, small_state(7))

    def killed(folder: Path) -> None:
        assert folder.suffix == ".partial" and not path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(path)
