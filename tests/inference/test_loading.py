"""A checkpoint file alone tells its model; the file next to it tells the tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkv_train.config.load import dump_config
from rwkv_train.config.schema import DataConfig, RunConfig
from rwkv_train.errors import CheckpointError, ConfigError, DataError
from rwkv_train.inference.generate import prefill
from rwkv_train.inference.loading import load_model, tokenizer_of
from rwkv_train.models.backbone import RWKV
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, tiny_model

CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def frozen(model: RWKV) -> RWKV:
    """Returns the model as one that is loaded: those that learn are computed another way."""
    return model.requires_grad_(False)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_saved_model_of_any_version_is_the_same_model(tmp_path: Path, version: str, suffix: str):
    model = tiny_model(version)
    path = tmp_path / f"model{suffix}"
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    loaded = load_model(path, device=CPU, dtype=torch.float32)
    assert loaded.config == model.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(prefill(loaded, PROMPT)[0], prefill(frozen(model), PROMPT)[0])


def test_a_model_in_bf16_says_nearly_the_same(tmp_path: Path):
    model = tiny_model("6")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth", device=CPU, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_close("logits", prefill(loaded, PROMPT)[0], prefill(model, PROMPT)[0], 0.05)


def test_trained_initial_states_are_where_a_text_starts(tmp_path: Path):
    model = tiny_model("6", options={"train_states": True})
    torch.save(model.state_dict(), tmp_path / "with.pth")
    without = {k: v for k, v in model.state_dict().items() if "time_state" not in k}
    torch.save(without, tmp_path / "without.pth")
    loaded = load_model(tmp_path / "with.pth", device=CPU, dtype=torch.float32)
    bare = load_model(tmp_path / "without.pth", device=CPU, dtype=torch.float32)
    expected = prefill(frozen(model), PROMPT)[0]
    assert torch.equal(prefill(loaded, PROMPT)[0], expected)
    assert not torch.allclose(prefill(bare, PROMPT)[0], expected)


def test_a_model_with_a_copy_head_is_refused(tmp_path: Path):
    torch.save(tiny_model("4", head_qk=16).state_dict(), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="copy head"):
        load_model(tmp_path / "model.pth", device=CPU, dtype=torch.float32)


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[RWKV, Path, Path]:
    """A model with trained states, a file of its base model and one of the states alone."""
    model = tiny_model("6", options={"train_states": True})
    states = {k: v for k, v in model.state_dict().items() if "time_state" in k}
    base = {k: v for k, v in model.state_dict().items() if k not in states}
    torch.save(base, tmp_path / "rwkv-init.pth")
    torch.save(states, tmp_path / "rwkv-3.pth")
    return model, tmp_path / "rwkv-init.pth", tmp_path / "rwkv-3.pth"


def test_states_in_a_file_of_their_own_join_the_base_model(tuned: tuple[RWKV, Path, Path]):
    model, base, states = tuned
    loaded = load_model(base, states=states, device=CPU, dtype=torch.float32)
    assert torch.equal(prefill(loaded, PROMPT)[0], prefill(frozen(model), PROMPT)[0])


def test_a_file_of_states_alone_is_refused(tuned: tuple[RWKV, Path, Path]):
    _, base, states = tuned
    with pytest.raises(CheckpointError, match=r"rwkv-3\.pth .*base model.*--load_states"):
        load_model(states, device=CPU, dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"--load_states .*rwkv-init\.pth holds more"):
        load_model(base, states=base, device=CPU, dtype=torch.float32)


def test_states_of_another_model_are_refused(tuned: tuple[RWKV, Path, Path], tmp_path: Path):
    _, base, _ = tuned
    other = {"blocks.7.att.time_state": torch.ones(2, 32, 32)}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.7\.att\.time_state"):
        load_model(base, states=tmp_path / "other.pth", device=CPU, dtype=torch.float32)


def test_the_number_of_rows_tells_a_built_in_tokenizer(tmp_path: Path):
    assert tokenizer_of(tmp_path / "x.pth", 65536).name == "world"
    assert tokenizer_of(tmp_path / "x.pth", 257).name == "bytes"


def test_the_run_s_config_tells_the_tokenizer_and_a_given_one_wins(tmp_path: Path):
    config = RunConfig(data=DataConfig(tokenizer="bytes"))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert tokenizer_of(tmp_path / "rwkv-3.pth", 65536).name == "bytes"
    assert tokenizer_of(tmp_path / "rwkv-3.pth", 65536, "world").name == "world"


@pytest.mark.parametrize("saved", [None, RunConfig()], ids=["no-config", "config-without"])
def test_an_unknown_tokenizer_is_asked_for(tmp_path: Path, saved: RunConfig | None):
    if saved is not None:
        (tmp_path / "config.yaml").write_text(dump_config(saved))
    with pytest.raises(ConfigError, match=r"100 tokens.*config\.yaml.*--tokenizer world"):
        tokenizer_of(tmp_path / "x.pth", 100)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"65536 tokens.*257 rows"):
        tokenizer_of(tmp_path / "x.pth", 257, "world")


def test_a_tokenizer_that_is_gone_is_named(tmp_path: Path):
    config = RunConfig(data=DataConfig(tokenizer=str(tmp_path / "gone.json")))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(DataError, match=r"gone\.json"):
        tokenizer_of(tmp_path / "x.pth", 300)
    shutil.rmtree(tmp_path)
