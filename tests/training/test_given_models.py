"""Models given by --load_model: our own merged files, folders, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from rwkv_train.checkpoint.resume import load_state
from tests.models.tiny import tiny_model
from tests.training.runs import assert_same_weights, losses, weights

FROM_FILE = dict.fromkeys(("rwkv_version", "n_layer", "n_embd", "head_size"))
STATES = {"train_type": "states", "load_partial": 1}
LORA = {"train_type": "lora", "lora_r": 4, "lora_targets": "att.key"}


@pytest.fixture
def given(flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., int]:
    """Trains a model that is given by its path; returns the exit status."""

    def run(path: Path, folder: str, **changes: object) -> int:
        places = {"load_model": path, "proj_dir": tmp_path / folder}
        return train.main(flags(**{**FROM_FILE, **places, **changes}))

    return run


def model_with_states() -> dict[str, torch.Tensor]:
    model = tiny_model("6", vocab_size=257)
    shapes = dict(model.state_dict())
    heads, size = shapes["blocks.0.att.time_faaaa"].shape
    generator = torch.Generator().manual_seed(1)
    for layer in range(2):
        state = torch.randn(heads, size, size, generator=generator)
        shapes[f"blocks.{layer}.att.time_state"] = state
    return shapes


@pytest.mark.parametrize("kind", [{}, STATES, LORA], ids=["all", "states", "lora"])
def test_our_merged_file_is_a_base(given: Callable[..., int], tmp_path: Path, kind: dict):
    base = model_with_states()
    path = tmp_path / "rwkv-3.merged.pth"
    torch.save(base, path)
    assert given(path, "whole", **kind) == 0
    for steps in (5, None):
        assert given(path, "parts", max_steps=steps, **kind) == 0
    whole = tmp_path / "whole"
    assert_same_weights(whole / "rwkv-final.pth", tmp_path / "parts" / "rwkv-final.pth")
    end = weights(whole / ("rwkv-final.merged.pth" if kind is STATES else "rwkv-final.pth"))
    assert set(end) == set(base)
    moved = {name for name in base if not torch.equal(end[name], base[name])}
    states = {name for name in base if name.endswith("time_state")}
    if kind is LORA:
        assert moved == {f"blocks.{layer}.att.key.weight" for layer in range(2)}
    else:
        assert states <= moved and (moved == states) == (kind is STATES)


def test_a_base_with_states_begins_with_them(given: Callable[..., int], tmp_path: Path):
    base = model_with_states()
    torch.save(base, tmp_path / "with.pth")
    torch.save({k: v for k, v in base.items() if "time_state" not in k}, tmp_path / "without.pth")
    for name in ("with", "without"):
        assert given(tmp_path / f"{name}.pth", name, max_steps=1) == 0
    assert losses(tmp_path / "with")[0] != losses(tmp_path / "without")[0]


def test_a_folder_with_shards_is_a_base_and_stays_one(given: Callable[..., int], tmp_path: Path):
    folder, places = tmp_path / "hub", {}
    folder.mkdir()
    model = tiny_model("6", vocab_size=257).state_dict()
    for name in model:
        places[name] = f"model-{len(places) % 2}.safetensors"
    for shard in set(places.values()):
        part = {name: value.clone() for name, value in model.items() if places[name] == shard}
        save_file(part, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for steps in (5, None):
        assert given(folder, "out", max_steps=steps, **LORA) == 0
    assert load_state(tmp_path / "out" / "rwkv-final.state")["base"]["path"] == str(folder)


def test_quantised_weights_and_adapters_are_refused_before_anything_is_written(
    given: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tiny_model("6", vocab_size=257).state_dict()
    torch.save({name: (value * 10).to(torch.int8) for name, value in model.items()}, tmp_path / "q")
    name = "base_model.model.blocks.0.att.key.lora_"
    adapter = {f"{name}A.weight": torch.ones(4, 32), f"{name}B.weight": torch.ones(32, 4)}
    save_file(adapter, tmp_path / "a.safetensors")
    for file, words in (("q", "quantised"), ("a.safetensors", "is an adapter")):
        assert given(tmp_path / file, "out") == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
