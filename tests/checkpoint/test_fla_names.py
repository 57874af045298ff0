"""Names and layouts of flash-linear-attention, from its modules, and what config.json must say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rwkv_train.checkpoint.fla_names import from_fla, to_fla, value_divisor
from rwkv_train.checkpoint.weights import load_weights, read_shapes
from rwkv_train.errors import CheckpointError
from tests.models.tiny import tiny_model

SIZES = {
    "6": {"rank_mix": 8, "rank_decay": 24},
    "7": {"rank_decay": 8, "rank_iclr": 16, "rank_value": 24, "rank_gate": 40},
}


def weights_of(version: str, **sizes) -> dict[str, Tensor]:
    return tiny_model(version, **{**SIZES[version], **sizes}).state_dict()


def saved(folder: Path, tensors: dict[str, Tensor], settings: dict | None) -> Path:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_rwkv6_is_stored_in_fla_s_order():
    weights = weights_of("6")
    found = to_fla(weights, "6", 8.0)
    at, theirs = "blocks.1.att.", "model.layers.1.attn."
    # r, w, k, v, g, where the checkpoint has w, k, v, r, g
    for place, mix in enumerate("rwkvg"):
        ours = weights[f"{at}time_maa_{mix}"].flatten()
        assert torch.equal(found[f"{theirs}x_bias"][place], ours)
    R = 8
    for place, ours in enumerate((3, 0, 1, 2, 4)):
        down = weights[f"{at}time_maa_w1"][:, ours * R : (ours + 1) * R]
        rows = found[f"{theirs}x_proj.0.linear.weight"][place * R : (place + 1) * R]
        assert torch.equal(rows, down.T)
        columns = found[f"{theirs}x_proj.2.weight"][:, place * R : (place + 1) * R]
        assert torch.equal(columns, weights[f"{at}time_maa_w2"][ours].T)
    value = found[f"{theirs}v_proj.linear.weight"]
    assert torch.equal(value * 8, weights[f"{at}value.weight"])
    assert torch.equal(
        found[f"{theirs}w_proj.linear.lora.0.weight"].T, weights[f"{at}time_decay_w1"]
    )


def test_the_divisor_makes_up_for_the_other_eps():
    """GN(y; e) = GN(y / d; e / d^2): theirs is 1e-5, or N 1e-5 for RWKV-7; RWKV's is 6.4e-4."""
    for head_size in (16, 32, 64, 128):
        assert math.isclose(value_divisor("6", head_size) ** 2 * 1e-5, 6.4e-4)
        assert math.isclose(value_divisor("7", head_size) ** 2 * head_size * 1e-5, 6.4e-4)


@pytest.mark.parametrize(("version", "head_size"), [("6", 32), ("6", 64), ("7", 16), ("7", 64)])
def test_there_and_back_is_the_same(tmp_path: Path, version: str, head_size: int):
    weights = weights_of(version, head_size=head_size)
    divisor = value_divisor(version, head_size)
    folder = saved(
        tmp_path / "fla", to_fla(weights, version, divisor), {"rwkv_value_divided_by": divisor}
    )
    found = load_weights(folder)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        unused = version == "7" and key.startswith("blocks.0.att.v") and key[-1].isdigit()
        expected = torch.zeros_like(value) if unused else value
        assert torch.equal(found[key], expected) and found[key].shape == value.shape
    assert read_shapes(folder) == {key: tuple(value.shape) for key, value in weights.items()}


@pytest.mark.parametrize(
    ("version", "head_size", "needed"), [("6", 64, "8"), ("7", 32, "1.4142135623730951")]
)
def test_whether_values_were_divided_must_be_said(tmp_path: Path, version, head_size, needed):
    weights = weights_of(version, head_size=head_size)
    plain = to_fla(weights, version, 1.0)
    said = rf'RWKV-{version}.*write "rwkv_value_divided_by" into the config.json.*{needed} when'
    for settings in (None, {"model_type": f"rwkv{version}"}):
        folder = saved(tmp_path / f"{settings is None}", plain, settings)
        with pytest.raises(CheckpointError, match=said):
            load_weights(folder)
    as_it_is = saved(tmp_path / "one", plain, {"rwkv_value_divided_by": 1})
    key = "blocks.1.att.value.weight"
    assert torch.equal(load_weights(as_it_is)[key], weights[key])
    # The file alone has its folder's settings too.
    assert torch.equal(load_weights(as_it_is / "model.safetensors")[key], weights[key])


@pytest.mark.parametrize("number", [0, -8, True, "8", math.inf])
def test_a_divisor_that_is_none_is_refused(tmp_path: Path, number: object):
    plain = to_fla(weights_of("6"), "6", 1.0)
    folder = saved(tmp_path / "fla", plain, {"rwkv_value_divided_by": number})
    with pytest.raises(CheckpointError, match=r"rwkv_value_divided_by is .*, expected a positive"):
        load_weights(folder)


def test_tensors_without_a_place_are_refused_in_both_directions():
    with pytest.raises(CheckpointError, match=r"time_state has no place in a folder of fla"):
        to_fla({"blocks.0.att.time_state": torch.zeros(2, 32, 32)}, "7", 1.0)
    with pytest.raises(CheckpointError, match=r"head_q\.weight has no place"):
        to_fla({"head_q.weight": torch.zeros(2, 32)}, "6", 8.0)
    entries = {
        "layers.0.attn.x_proj.0.mu": torch.zeros(64),
        "layers.0.attn.q_proj.weight": torch.zeros(64, 64),
    }
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has no place in an RWKV-6"):
        from_fla(Path("fla"), entries, 8.0)
