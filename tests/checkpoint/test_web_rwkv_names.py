"""Files for web-rwkv are read back as the checkpoints they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_train.checkpoint.web_rwkv_names import to_web_rwkv
from rwkv_train.checkpoint.weights import load_weights, read_shapes, save_weights
from rwkv_train.errors import CheckpointError
from tests.models.tiny import VERSIONS, tiny_model

SIZES = {
    "6": {"rank_mix": 8, "rank_decay": 24},
    "7": {"rank_decay": 8, "rank_iclr": 16, "rank_value": 24, "rank_gate": 40},
}


def weights_of(version: str, **sizes) -> dict[str, Tensor]:
    return tiny_model(version, **{**SIZES.get(version, {}), **sizes}).state_dict()


@pytest.mark.parametrize("version", VERSIONS)
def test_there_and_back_is_the_same(tmp_path: Path, version: str):
    weights = weights_of(version)
    path = tmp_path / "model.st"
    save_weights(path, to_web_rwkv(weights), torch.float16)
    assert path.read_bytes()[8:9] == b"{"
    found = load_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value.half()) for key, value in weights.items())
    assert read_shapes(path) == {key: tuple(value.shape) for key, value in weights.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_other_files_are_left_as_they_are(tmp_path: Path, version: str):
    """Trained states in a model too, which are turned in files for web-rwkv only."""
    model = tiny_model(version, options={"train_states": True})
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("time_state"):
                value.copy_(torch.randn(value.shape))
    weights = model.state_dict()
    save_weights(tmp_path / "model.pth", weights, torch.float32)
    found = load_weights(tmp_path / "model.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_names_and_layouts_are_web_rwkv_s():
    six = to_web_rwkv(weights_of("6"))
    shapes = {
        "blocks.1.att.time_first": (2, 32),
        "blocks.1.att.time_mix_x": (1, 1, 64),
        "blocks.1.att.time_mix_w1": (40, 64),
        "blocks.1.att.time_mix_w2": (5, 64, 8),
        "blocks.1.att.time_decay_w1": (24, 64),
        "blocks.1.att.time_decay_w2": (64, 24),
        "blocks.1.ffn.time_mix_k": (1, 1, 64),
    }
    assert {key: tuple(six[key].shape) for key in shapes} == shapes
    assert not any("time_maa" in key or "time_faaaa" in key for key in six)
    seven = to_web_rwkv(weights_of("7"))
    assert tuple(seven["blocks.1.att.g1"].shape) == (40, 64)
    assert tuple(seven["blocks.1.att.g2"].shape) == (64, 40)
    assert tuple(seven["blocks.1.att.w0"].shape) == (1, 1, 64)
    assert to_web_rwkv(weights_of("4")).keys() == weights_of("4").keys()


def test_layer_0_of_rwkv7_may_lack_what_it_never_uses(tmp_path: Path):
    weights = weights_of("7")
    unused = [f"blocks.0.att.v{number}" for number in range(3)]
    stored = {key: value for key, value in to_web_rwkv(weights).items() if key not in unused}
    save_weights(tmp_path / "model.st", stored, torch.float16)
    found = load_weights(tmp_path / "model.st")
    assert found.keys() == weights.keys()
    assert all(not found[key].any() and found[key].shape == weights[key].shape for key in unused)


def test_ranks_that_are_the_width_leave_the_layout_to_the_ending(tmp_path: Path):
    square = {f"rank_{name}": 64 for name in ("decay", "iclr", "value", "gate")}
    weights = weights_of("7", **square)
    save_weights(tmp_path / "model.st", to_web_rwkv(weights), torch.float16)
    save_weights(tmp_path / "model.safetensors", weights, torch.float16)
    for name in ("model.st", "model.safetensors"):
        found = load_weights(tmp_path / name)
        assert all(torch.equal(found[key], value.half()) for key, value in weights.items())


def test_both_layouts_in_one_file_are_refused(tmp_path: Path):
    weights = weights_of("7")
    weights["blocks.1.att.a1"] = weights["blocks.1.att.a1"].T
    save_weights(tmp_path / "model.pth", weights, torch.float32)
    with pytest.raises(CheckpointError, match="in both layouts"):
        load_weights(tmp_path / "model.pth")


def test_states_are_turned_by_the_ending_of_their_file(tmp_path: Path):
    states = {f"blocks.{layer}.att.time_state": torch.randn(2, 32, 32) for layer in range(2)}
    save_weights(tmp_path / "tuned.state", to_web_rwkv(states), torch.float16)
    save_weights(tmp_path / "tuned.safetensors", states, torch.float16)
    for name in ("tuned.state", "tuned.safetensors"):
        found = load_weights(tmp_path / name)
        assert found.keys() == states.keys()
        assert all(torch.equal(found[key], value.half()) for key, value in states.items())
    written = to_web_rwkv(states)["blocks.0.att.time_state"]  # [H, key, value]
    assert torch.equal(written[1, 3, 5], states["blocks.0.att.time_state"][1, 5, 3])
