"""Reading, fitting and writing weight files, sound and damaged."""

from __future__ import annotations

import collections
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkv_train.checkpoint.weights import load_weights, read_shapes, save_weights
from rwkv_train.errors import CheckpointError

both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def example():
    """A small state dict in a non-alphabetical order, with one integer tensor."""
    return {
        "emb.weight": torch.arange(12.0).view(4, 3) / 7,
        "blocks.0.att.time_mix_k": torch.full((1, 1, 3), 0.5),
        "head.weight": -torch.ones(4, 3),
        "steps": torch.tensor([3, 4]),
    }


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype and torch.equal(actual[key], value), key


@both_formats
def test_what_is_saved_is_loaded(tmp_path, suffix):
    path = tmp_path / f"rwkv-0{suffix}"
    save_weights(path, example(), torch.float32)
    assert_same(load_weights(path), example())
    assert read_shapes(path) == {key: tuple(value.shape) for key, value in example().items()}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_pth_is_a_plain_dictionary_in_the_given_order(tmp_path):
    path = tmp_path / "rwkv-0.pth"
    save_weights(path, collections.OrderedDict(reversed(example().items())), torch.float32)
    content = torch.load(path, weights_only=True)
    assert type(content) is dict
    assert list(content) == list(reversed(example()))
    assert list(load_weights(path)) == list(read_shapes(path)) == list(content)


def test_floats_are_written_and_read_in_the_dtype_asked_for(tmp_path):
    path = tmp_path / "rwkv-0.pth"
    save_weights(path, example(), torch.bfloat16)
    stored = load_weights(path)
    assert stored["emb.weight"].dtype == torch.bfloat16
    assert torch.equal(stored["emb.weight"], example()["emb.weight"].bfloat16())
    assert stored["steps"].dtype == torch.int64
    wide = load_weights(path, torch.float64)
    assert wide["emb.weight"].dtype == torch.float64
    assert torch.equal(wide["emb.weight"], example()["emb.weight"].bfloat16().double())
    assert wide["steps"].dtype == torch.int64


def test_views_parameters_and_shared_tensors_are_written_as_themselves(tmp_path):
    path = tmp_path / "rwkv-0.pth"
    large = torch.zeros(1000, 1000)
    large[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    parameter = torch.nn.Parameter(large[0, :3])
    save_weights(path, {"a": parameter, "b": parameter, "c": large[:2, :3].T}, torch.float32)
    loaded = load_weights(path)
    assert path.stat().st_size < 10_000
    assert loaded["a"].tolist() == loaded["b"].tolist() == [1, 2, 3]
    assert loaded["a"].data_ptr() != loaded["b"].data_ptr()
    assert loaded["c"].tolist() == [[1, 0], [2, 0], [3, 0]]
    assert not loaded["a"].requires_grad


@pytest.mark.parametrize(
    "prefix", ["_forward_module.", "module.", "model.", "_forward_module.model.", "module.module."]
)
def test_wrapper_prefixes_are_stripped(tmp_path, prefix):
    path = tmp_path / "wrapped.pth"
    torch.save({prefix + key: value for key, value in example().items()}, path)
    assert_same(load_weights(path), example())
    assert list(read_shapes(path)) == list(example())


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.pth"
    torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, path)
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError, match="holds a twice"):
            read(path)


def test_masks_of_rwkv_lm_are_dropped(tmp_path):
    path = tmp_path / "masks.pth"
    masks = {"copy_mask": torch.ones(8, 8), "blocks.1.tiny_mask": torch.ones(8, 8)}
    torch.save({**masks, **example()}, path)
    assert_same(load_weights(path), example())
    assert "copy_mask" not in read_shapes(path)


def test_old_torch_files_are_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(example(), path, _use_new_zipfile_serialization=False)
    assert_same(load_weights(path), example())
    assert read_shapes(path)["emb.weight"] == (4, 3)


def test_shapes_are_read_without_the_data(tmp_path):
    path = tmp_path / "rwkv-0.pth"
    big = torch.zeros(2000, 1000)
    save_weights(path, {"big": big}, torch.float32)
    damaged = bytearray(path.read_bytes())
    # Past the names, in the middle of the data: only a reader of the data can notice.
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert read_shapes(path) == {"big": (2000, 1000)}
    with pytest.raises(CheckpointError, match="checksum"):
        load_weights(path)


@both_formats
def test_every_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    save_weights(path, example(), torch.float32)
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 60, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:length])
        for read in (load_weights, read_shapes):
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "weights_only" not in str(caught.value)


def test_a_truncated_old_torch_file_is_refused(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(example(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_weights(path)


@both_formats
@pytest.mark.parametrize("content", [b"not a checkpoint", b"{}", bytes(1000), b"PK\x03\x04junk"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
            read(tmp_path / "nowhere.pth")


def test_a_folder_is_recognised_as_shards(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder.*zero_to_fp32"):
        load_weights(tmp_path)


class Runs:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path):
    trap = tmp_path / "sprung"
    path = tmp_path / "trap.pth"
    torch.save({"a": torch.zeros(1), "b": Runs(trap)}, path)
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError, match="more than tensors"):
            read(path)
    path.write_bytes(pickle.dumps({"b": Runs(trap)}, protocol=2))
    with pytest.raises(CheckpointError):
        load_weights(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "holds dict under 'state_dict'"),
        ({"a": 3.0}, "holds float under 'a'"),
        ({3: torch.zeros(1)}, "under 3"),
        ([torch.zeros(1)], "holds list"),
        (torch.zeros(1), "holds Tensor"),
        ({}, "expected a flat dictionary"),
    ],
)
def test_anything_but_named_tensors_is_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert message in str(caught.value)


@both_formats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_on_reading_and_writing(tmp_path, suffix, bad):
    path = tmp_path / f"rwkv-0{suffix}"
    save_weights(path, example(), torch.float32)
    before = path.read_bytes()
    poisoned = example()
    poisoned["head.weight"][3, 2] = bad
    with pytest.raises(CheckpointError, match=r"was not written.*NaN or infinity in head\.weight"):
        save_weights(path, poisoned, torch.float32)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    save_file(poisoned, path) if suffix == ".safetensors" else torch.save(poisoned, path)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in head\.weight"):
        load_weights(path)


def test_values_too_large_for_the_dtype_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="as float16 the model holds"):
        save_weights(tmp_path / "rwkv-0.pth", {"a": torch.tensor([1e5])}, torch.float16)
    assert not list(tmp_path.iterdir())


def test_many_poisoned_tensors_make_a_short_message(tmp_path):
    poisoned = {f"t{i}": torch.tensor([float("nan")]) for i in range(30)}
    with pytest.raises(CheckpointError) as caught:
        save_weights(tmp_path / "rwkv-0.pth", poisoned, torch.float32)
    assert "t0, t1, t2 and 27 more" in str(caught.value)


@both_formats
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"rwkv-0{suffix}"
    save_weights(path, example(), torch.float32)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses every byte beyond this, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*unchanged"):
            save_weights(path, {"a": torch.zeros(1_000_000)}, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@both_formats
def test_file_and_folder_are_flushed_around_the_rename(tmp_path, suffix, monkeypatch):
    events = []
    flushed = lambda fd: events.append(Path(f"/proc/self/fd/{fd}").readlink())  # noqa: E731
    monkeypatch.setattr(os, "fsync", flushed)
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *paths: events.append("rename") or rename(*paths))
    path = tmp_path / f"rwkv-0{suffix}"
    save_weights(path, example(), torch.float32)
    assert len(events) == 3
    assert events[0].parent == tmp_path and events[0].name.startswith(path.name)
    assert events[1:] == ["rename", tmp_path]


@both_formats
def test_a_folder_that_cannot_be_written_is_named(tmp_path, suffix):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(CheckpointError) as caught:
            save_weights(folder / f"rwkv-0{suffix}", example(), torch.float32)
        assert str(folder / "rwkv-0") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_both_formats_can_be_read_by_the_same_people(tmp_path):
    modes = set()
    for name in ("a.pth", "a.safetensors"):
        save_weights(tmp_path / name, {"emb.weight": torch.ones(2, 2)}, torch.float32)
        modes.add((tmp_path / name).stat().st_mode)
    assert len(modes) == 1
