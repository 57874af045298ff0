"""Adapters on disk: peft's format, and the merger with a base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkv_train.checkpoint import merge as merge_tool
from rwkv_train.checkpoint.adapter_files import (
    Adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    split_adapter,
)
from rwkv_train.errors import CheckpointError

MATRIX = torch.arange(6.0).reshape(2, 3)
DOWN, UP = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0], [20.0]])
NAME = "blocks.0.att.key"
BASE = {f"{NAME}.weight": MATRIX, "ln_out.bias": torch.ones(1, 1, 2)}


def adapter(**parts) -> Adapter:
    return Adapter(0.5, 1, {NAME: (DOWN, UP)}, **parts)


def test_the_change_is_added_at_its_scale():
    merged = merge_adapter(BASE, adapter(whole={"ln_out.bias": torch.tensor([3.0, 4.0])}))
    # W + 1/2 [10, 20]^T [1, 2, 3]
    assert merged[f"{NAME}.weight"].tolist() == [[5.0, 11.0, 17.0], [13.0, 24.0, 35.0]]
    assert merged["ln_out.bias"].tolist() == [[[3.0, 4.0]]]
    assert list(merged) == list(BASE)
    assert BASE[f"{NAME}.weight"] is MATRIX and MATRIX[0, 1] == 1


def test_the_rows_of_dora_have_the_learnt_length():
    merged = merge_adapter(BASE, adapter(lengths={NAME: torch.tensor([1.0, 2.0])}))[
        f"{NAME}.weight"
    ]
    assert merged.norm(dim=1).tolist() == pytest.approx([1.0, 2.0])
    assert merged[0] == pytest.approx(torch.tensor([5.0, 11.0, 17.0]) / 435**0.5)


def test_pissa_at_its_start_gives_the_base_back_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    base = {f"{NAME}.weight": torch.randn(40, 30, generator=generator)}
    start = {
        "lora_A": torch.randn(8, 30, generator=generator),
        "lora_B": torch.randn(40, 8, generator=generator),
    }
    training = {
        **base,
        **{f"{NAME}.{k}": v for k, v in start.items()},
        **{f"{NAME}.{k}0": v.clone() for k, v in start.items()},
    }
    found, change = split_adapter(training, 2.0, {})
    assert list(found) == list(base) and change.rank == 16
    assert torch.equal(merge_adapter(found, change)[f"{NAME}.weight"], base[f"{NAME}.weight"])


def test_the_file_has_the_names_and_settings_of_peft(tmp_path: Path):
    path = tmp_path / "rwkv-3.lora.safetensors"
    whole = {"ln_out.bias": torch.zeros(2)}
    save_adapter(path, adapter(lengths={NAME: torch.ones(2)}, whole=whole), torch.float32, "b.pth")
    prefix = f"base_model.model.{NAME}"
    assert {key: tuple(value.shape) for key, value in load_file(path).items()} == {
        f"{prefix}.lora_A.weight": (1, 3),
        f"{prefix}.lora_B.weight": (2, 1),
        f"{prefix}.lora_magnitude_vector": (2,),
        "base_model.model.ln_out.bias": (2,),
    }
    settings = json.loads((tmp_path / "rwkv-3.lora.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["use_dora"] is True
    assert (settings["r"], settings["lora_alpha"]) == (1, 0.5)
    assert settings["target_modules"] == ["att.key"]
    again = load_adapter(path)
    assert (again.scale, again.rank) == (0.5, 1)
    assert torch.equal(
        merge_adapter(BASE, again)[f"{NAME}.weight"],
        merge_adapter(BASE, adapter(lengths={NAME: torch.ones(2)}))[f"{NAME}.weight"],
    )


def peft_folder(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    save_file(
        {
            f"base_model.model.{NAME}.lora_A.weight": DOWN,
            f"base_model.model.{NAME}.lora_B.weight": UP,
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2, **settings})
    )
    return folder


def test_a_folder_of_peft_is_read(tmp_path: Path):
    assert load_adapter(peft_folder(tmp_path / "plain")).scale == 0.5
    assert load_adapter(peft_folder(tmp_path / "rs", use_rslora=True)).scale == 1.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank_pattern": {"key": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": "many"}, "r and lora_alpha"),
    ],
)
def test_settings_that_mean_something_else_are_refused(tmp_path: Path, settings, named):
    with pytest.raises(CheckpointError, match=named):
        load_adapter(peft_folder(tmp_path / "x", **settings))


@pytest.mark.parametrize(
    ("base", "named"),
    [({"other": MATRIX}, "does not have"), ({f"{NAME}.weight": MATRIX.T}, "3 x 2")],
)
def test_an_adapter_of_another_model_is_refused(base, named):
    with pytest.raises(CheckpointError, match=named):
        merge_adapter(base, adapter())


def test_the_tool_merges_and_overwrites_nothing(tmp_path: Path, capsys):
    torch.save({key: value.bfloat16() for key, value in BASE.items()}, tmp_path / "base.pth")
    out = tmp_path / "out.pth"
    command = [str(tmp_path / "base.pth"), str(peft_folder(tmp_path / "a")), str(out)]
    assert merge_tool.main(command) == 0
    merged = torch.load(out, weights_only=True)
    assert merged[f"{NAME}.weight"].dtype == torch.bfloat16
    assert merged[f"{NAME}.weight"].tolist() == [[5.0, 11.0, 17.0], [13.0, 24.0, 35.0]]
    assert merge_tool.main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_tool_says_that_a_whole_model_is_no_adapter(tmp_path: Path, capsys):
    torch.save(BASE, tmp_path / "base.pth")
    path = str(tmp_path / "base.pth")
    assert merge_tool.main([path, path, str(tmp_path / "out.pth")]) == 2
    err = capsys.readouterr().err
    assert "base.pth holds no low-rank adapter" in err and err.count("\n") == 1


def test_the_tool_puts_states_into_their_model(tmp_path: Path, capsys):
    state = {"blocks.0.att.time_state": torch.ones(1, 2, 2)}
    torch.save(BASE, tmp_path / "base.pth")
    torch.save(state, tmp_path / "states.pth")
    paths = [str(tmp_path / name) for name in ("base.pth", "states.pth", "out.safetensors")]
    assert merge_tool.main(paths) == 0
    assert load_file(paths[2]).keys() == {*BASE, *state}
    torch.save({"blocks.4.att.time_state": torch.ones(1, 2, 2)}, tmp_path / "states.pth")
    assert merge_tool.main([*paths[:2], str(tmp_path / "other.pth")]) == 2
    assert "states of 1 layers" in capsys.readouterr().err
    assert not (tmp_path / "other.pth").exists()
