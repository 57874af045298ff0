"""Files for web-rwkv and Ai00, and trained states for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import read_source
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.web_rwkv_file import WebRwkvFile
from tests.export.exported_models import source_model
from tests.models.tiny import VERSIONS, tiny_model

FP16 = ExportOptions("fp16")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_written_in_fp16_and_comes_back(tmp_path: Path, version: str):
    source = source_model(version, "random", tmp_path)
    said: list[str] = []
    export_model(
        source, WebRwkvFile(), FP16, tmp_path / "m.st", check=False, card=False, say=said.append
    )
    assert {value.dtype for value in load_file(tmp_path / "m.st").values()} == {torch.float16}
    found = read_source(tmp_path / "m.st").weights
    assert all(torch.equal(found[key], value.half()) for key, value in source.weights.items())
    assert any("fewer than 6 layers" in line for line in said)


def test_trained_states_are_written_beside_as_ai00_takes_them(tmp_path: Path):
    tuned = tiny_model("6", vocab_size=257, options={"train_states": True})
    save_weights(tmp_path / "merged.pth", tuned.state_dict(), torch.float32)
    source, said = read_source(tmp_path / "merged.pth"), []
    export_model(
        source, WebRwkvFile(), FP16, tmp_path / "m.st", check=False, card=False, say=said.append
    )
    assert not any("time_state" in key for key in load_file(tmp_path / "m.st"))
    beside = load_weights(tmp_path / "m.state")
    assert beside.keys() == source.states.keys()
    for key, value in source.states.items():
        assert torch.equal(beside[key], value.half())
        # as it is in the file: [H, key, value]
        assert torch.equal(load_file(tmp_path / "m.state")[key], value.half().mT)
    assert any("m.state beside it" in line and "Ai00" in line for line in said)
    # And they are taken back as --load_states.
    again = read_source(tmp_path / "m.st", load_states=tmp_path / "m.state")
    assert all(torch.equal(again.states[k], v.half()) for k, v in source.states.items())


def test_numbers_beyond_fp16_are_an_error_and_no_file(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    large = {**source.weights, "emb.weight": source.weights["emb.weight"] * 1e6}
    with pytest.raises(CheckpointError, match="as float16 the model holds NaN or infinity in emb"):
        export_model(replace(source, weights=large), WebRwkvFile(), FP16, tmp_path / "m.st")
    assert not (tmp_path / "m.st").exists()


def test_other_formats_are_refused(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    with pytest.raises(ConfigError, match="web-rwkv has no --precision fp32; choose from fp16"):
        export_model(source, WebRwkvFile(), ExportOptions("fp32"), tmp_path / "m.st")
    wide = replace(source, config=replace(source.config, dim_att=128))
    assert "--dim_att (128)" in (WebRwkvFile().refuses(wide, FP16) or "")
