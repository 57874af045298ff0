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

from src.checkpoint.weights import fit_weights, load_weights, read_shapes, save_weights
from src.errors import CheckpointError

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


@pytest.mark.parametrize("prefix", ["_forward_module.", "module.", "model.",
                                    "_forward_module.model.", "module.module."])
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


@pytest.mark.parametrize(("content", "message"), [
    ({"state_dict": {"a": torch.zeros(1)}}, "holds dict under 'state_dict'"),
    ({"a": 3.0}, "holds float under 'a'"),
    ({3: torch.zeros(1)}, "under 3"),
    ([torch.zeros(1)], "holds list"),
    (torch.zeros(1), "holds Tensor"),
    ({}, "expected a flat dictionary"),
])
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


def model_of(layers, *, vocab=4, width=3):
    """Keys and shapes like a model's, all zero."""
    state = {"emb.weight": torch.zeros(vocab, width)}
    for layer in range(layers):
        state |= {
            f"blocks.{layer}.ln1.weight": torch.zeros(width),
            f"blocks.{layer}.att.time_mix_k": torch.zeros(1, 1, width),
            f"blocks.{layer}.att.v0": torch.zeros(1, 1, width),
            f"blocks.{layer}.att.key.weight": torch.zeros(width, width),
            f"blocks.{layer}.ffn.key.weight": torch.zeros(width, width),
        }
    return state | {"head.weight": torch.zeros(vocab, width)}


def filled(state):
    """The same keys, other values: those of a file."""
    return {key: value + 1 for key, value in state.items()}


def test_a_fitting_checkpoint_is_taken_in_model_order():
    model = model_of(2)
    file = dict(reversed(filled(model).items()))
    fitted, report = fit_weights(model, file, partial=False)
    assert list(fitted) == list(model)
    assert all(fitted[key] is file[key] for key in model)
    assert (report.filled, report.reshaped, str(report)) == ((), (), "")


def test_axes_of_size_one_are_reshaped():
    model = model_of(1)
    key = "blocks.0.att.time_mix_k"
    file = filled(model) | {key: torch.tensor([1.0, 2.0, 3.0])}
    fitted, report = fit_weights(model, file, partial=False)
    assert fitted[key].shape == (1, 1, 3) and fitted[key].flatten().tolist() == [1, 2, 3]
    assert report.reshaped == (key,)
    assert key in str(report)


def test_the_same_number_of_entries_is_not_enough():
    model = {"emb.weight": torch.zeros(4, 3)}
    for shape in ((3, 4), (12,), (2, 6)):
        with pytest.raises(CheckpointError, match=r"emb\.weight \[.*\(expected \[4, 3\]\)"):
            fit_weights(model, {"emb.weight": torch.zeros(shape)}, partial=True)


def test_optional_keys_may_be_missing_and_keep_the_models_value():
    model = model_of(2)
    file = filled(model)
    del file["blocks.0.att.v0"]
    with pytest.raises(CheckpointError, match=r"missing: blocks\.0\.att\.v0"):
        fit_weights(model, file, partial=False)
    fitted, report = fit_weights(model, file, partial=False, optional=("blocks.0.att.v0",))
    assert fitted["blocks.0.att.v0"] is model["blocks.0.att.v0"]
    assert report.filled == ("blocks.0.att.v0",)
    del file["blocks.1.att.v0"]
    _, report = fit_weights(model, file, partial=False, optional=("blocks.*.att.v0",))
    assert report.filled == ("blocks.0.att.v0", "blocks.1.att.v0")


def test_partial_loading_fills_single_tensors_and_lists_them():
    model = model_of(2)
    file = filled(model)
    del file["blocks.1.att.time_mix_k"]
    with pytest.raises(CheckpointError, match="--load_partial 1 fills"):
        fit_weights(model, file, partial=False)
    fitted, report = fit_weights(model, file, partial=True)
    assert fitted["blocks.1.att.time_mix_k"] is model["blocks.1.att.time_mix_k"]
    assert report.filled == ("blocks.1.att.time_mix_k",)
    assert "blocks.1.att.time_mix_k kept the initial value" in str(report)


@pytest.mark.parametrize("lost", ["emb.", "head.", "blocks.1.att.", "blocks.0.ffn.", "blocks.1."])
def test_partial_loading_refuses_to_fill_whole_layers(lost):
    model = model_of(2)
    file = {key: value for key, value in filled(model).items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=f"whole layers missing: {lost.rstrip('.')}"):
        fit_weights(model, file, partial=True)


def test_a_file_of_states_alone_is_no_base_model():
    model = model_of(2) | {f"blocks.{i}.att.time_state": torch.zeros(1, 3, 3) for i in range(2)}
    states = {key: value for key, value in filled(model).items() if "time_state" in key}
    with pytest.raises(CheckpointError, match="only trained states: load its base model"):
        fit_weights(model, states, partial=True, optional=("blocks.*.att.time_state",))


def test_states_for_a_model_without_them_are_explained():
    file = filled(model_of(1)) | {"blocks.0.att.time_state": torch.zeros(1, 3, 3)}
    with pytest.raises(CheckpointError, match="the file holds trained states"):
        fit_weights(model_of(1), file, partial=False)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("in_file", "given"), [(24, 12), (12, 24)])
def test_another_number_of_layers_is_named(partial, in_file, given):
    with pytest.raises(CheckpointError) as caught:
        fit_weights(model_of(given), filled(model_of(in_file)), partial=partial)
    message = str(caught.value)
    assert f"the file has {in_file} layers, --n_layer {given} was given" in message
    # 60 keys are in question; the message shows ten of them.
    assert "more (60 in all)" in message or "whole layers missing" in message
    assert len(message) < 1500


def test_another_vocabulary_or_width_is_named():
    with pytest.raises(CheckpointError, match="--vocab_size 9, the model was built with 4"):
        fit_weights(model_of(1), filled(model_of(1, vocab=9)), partial=False)
    with pytest.raises(CheckpointError, match="--n_embd 6, the model was built with 3"):
        fit_weights(model_of(1), filled(model_of(1, width=6)), partial=False)


def test_all_kinds_of_misfit_are_in_one_message():
    model = model_of(1)
    file = filled(model) | {"stranger": torch.zeros(1), "head.weight": torch.zeros(4, 5)}
    del file["blocks.0.ln1.weight"]
    with pytest.raises(CheckpointError) as caught:
        fit_weights(model, file, partial=False)
    assert str(caught.value).splitlines() == [
        "the checkpoint does not fit the model:",
        "  missing: blocks.0.ln1.weight",
        "  unexpected: stranger",
        "  of another shape: head.weight [4, 5] (expected [4, 3])",
        "  leave --rwkv_version and the size flags out: they are then read from the checkpoint",
    ]
