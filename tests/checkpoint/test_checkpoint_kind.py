"""Files that people give as a model: read by their bytes, or refused saying what they are."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save

from rwkv_train.checkpoint.resume import save_state
from rwkv_train.checkpoint.weights import load_tensors, load_weights, read_shapes
from rwkv_train.errors import CheckpointError
from tests.checkpoint.small_states import small_state

MODEL = {
    "emb.weight": torch.arange(12.0).view(4, 3),
    "blocks.0.att.key.weight": torch.ones(3, 3),
    "head.weight": torch.ones(4, 3),
}


def assert_is_model(path: Path):
    found = load_weights(path)
    assert list(found) == list(MODEL) or set(found) == set(MODEL)
    assert all(torch.equal(found[key], value) for key, value in MODEL.items())
    assert read_shapes(path) == {key: tuple(found[key].shape) for key in found}


def refusal(path: Path) -> str:
    """What both readers say."""
    said = set()
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        said.add(str(caught.value))
    (message,) = said
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".pth", ".st", ".bin", ".ckpt", ".safetensors", ""])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_sound_file_is_read_whatever_its_name(tmp_path: Path, form: str, suffix: str):
    path = tmp_path / f"model{suffix}"
    if form == "safetensors":
        save_file(MODEL, path)
    else:
        torch.save(MODEL, path, _use_new_zipfile_serialization=form == "zip")
    assert_is_model(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (bytes(5000), "is zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"<!DOCTYPE html><html>Login</html>", "a web page"),
        (b"\n<html>", "a web page"),
        (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
        (b'{"weight_map": {}}', "is JSON"),
        (gzip.compress(b"x" * 100, mtime=0), "compressed by gzip"),
        (b"MMIDIDX\0\0\1" + bytes(50), "--data_file"),
        (b"some words\n", "is text"),
        (b"\xfe\xfd\xfc" * 50, "format that is not known"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, words: str, suffix: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert words in refusal(path)


def a_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("model.pth", b"x")
    return folder / "model.zip"


def a_tar(folder: Path) -> Path:
    (folder / "x").write_bytes(b"x")
    with tarfile.open(folder / "model.pth", "w") as archive:
        archive.add(folder / "x")
    return folder / "model.pth"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def a_broken_link(folder: Path) -> Path:
    (folder / "link.pth").symlink_to(folder / "gone.pth")
    return folder / "link.pth"


def an_array(folder: Path) -> Path:
    np.save(folder / "model.npy", np.zeros(3))
    return folder / "model.npy"


def a_state(folder: Path) -> Path:
    save_state(folder / "rwkv-0.state", small_state(1))
    return folder / "rwkv-0.state"


def an_adapter(folder: Path) -> Path:
    name = "base_model.model.blocks.0.att.key"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 3), f"{name}.lora_B.weight": torch.ones(3, 1)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder / "adapter_model.safetensors"


def an_adapter_folder(folder: Path) -> Path:
    an_adapter(folder)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def a_folder_of_checkpoints(folder: Path) -> Path:
    for name in ("rwkv-0.pth", "rwkv-final.pth"):
        torch.save(MODEL, folder / name)
    return folder


def another_model(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(MODEL, folder / "model.safetensors")
    return folder


def a_folder_of_parts(folder: Path) -> Path:
    parts = folder / "parts"
    save({"weight": torch.zeros(2)}, checkpoint_id=parts, no_dist=True)
    return parts


def a_state_in_a_folder(folder: Path) -> Path:
    parts = a_folder_of_parts(folder)
    (parts / "manifest.json").write_text("{}")
    return parts


def two_models(folder: Path) -> Path:
    both = {f"{p}.{key}": value for p in ("policy", "reference") for key, value in MODEL.items()}
    torch.save(both, folder / "two.pth")
    return folder / "two.pth"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_zip, "a zip archive"),
        (a_tar, "a tar archive"),
        (a_pipe, "is a pipe"),
        (a_broken_link, "is a link to"),
        (an_array, "NumPy"),
        (a_state, "is a training state"),
        (a_folder_of_parts, "checkpoint of torch.distributed.checkpoint; .* dcp_to_torch"),
        (a_state_in_a_folder, "is a training state"),
        (an_adapter, "is an adapter.*checkpoint.merge BASE.pth"),
        (an_adapter_folder, "is an adapter.*checkpoint.merge BASE.pth"),
        (a_folder_of_checkpoints, "give one of them: rwkv-0.pth, rwkv-final.pth"),
        (another_model, "of type llama"),
        (two_models, "2 models, under 'policy.', 'reference.'"),
    ],
)
def test_other_things_are_named_with_the_next_step(
    tmp_path: Path, make: Callable[[Path], Path], words: str
):
    assert re.search(words, refusal(make(tmp_path)))


def test_an_adapter_is_read_where_one_is_asked_for(tmp_path: Path):
    assert set(load_tensors(an_adapter(tmp_path))) == {
        "blocks.0.att.key.lora_A.weight",
        "blocks.0.att.key.lora_B.weight",
    }


@pytest.mark.parametrize(
    "nest",
    [
        lambda m: {"state_dict": m, "epoch": 3},
        lambda m: {"model": m, "step": 5, "args": {"lr": 0.1}},
        lambda m: {"module": m},
        lambda m: {"state_dict": {"model": m}},
        lambda m: {"state_dict": {f"model.{key}": value for key, value in m.items()}},
    ],
)
def test_a_model_inside_a_trainers_file_is_found(tmp_path: Path, nest: Callable[[dict], dict]):
    torch.save(nest(MODEL), tmp_path / "model.pth")
    assert_is_model(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_forward_module.model._orig_mod.{key}",
        lambda key: f"student.{key}",
        lambda key: f"base_model.model.{key}",
        lambda key: key.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda key: key.replace("att.", "att._checkpoint_wrapped_module."),
        lambda key: f"_fsdp_wrapped_module.{key}".replace("att.", "att._fsdp_wrapped_module."),
    ],
)
def test_names_are_freed_of_every_wrapper(tmp_path: Path, rename: Callable[[str], str]):
    torch.save({rename(key): value for key, value in MODEL.items()}, tmp_path / "model.pth")
    assert_is_model(tmp_path / "model.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, dtype: torch.dtype, form: str):
    path = tmp_path / f"model.{form}"
    tensors = {**MODEL, "blocks.0.att.key.weight": torch.ones(3, 3).to(dtype)}
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    for read in (load_weights, read_shapes):
        with pytest.raises(CheckpointError, match=r"quantised.*blocks\.0\.att\.key\.weight"):
            read(path)


def test_a_folder_of_one_file_and_one_of_shards_are_read(tmp_path: Path):
    one, shards = tmp_path / "one", tmp_path / "shards"
    one.mkdir(), shards.mkdir()
    (one / "config.json").write_text(json.dumps({"model_type": "rwkv7"}))
    save_file(MODEL, one / "model.safetensors")
    assert_is_model(one)
    places = {}
    for number, (key, value) in enumerate(MODEL.items()):
        places[key] = f"model-{number}.safetensors"
        save_file({key: value}, shards / places[key])
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_is_model(shards)
    (shards / "model-1.safetensors").unlink()
    assert "lacks 1 of 3 shards: model-1.safetensors" in refusal(shards)
