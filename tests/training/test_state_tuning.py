"""State tuning: only the initial states learn, and a resume keeps the base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from src.checkpoint.resume import load_state
from src.config.schema import ModelConfig
from src.inference.generate import prefill
from src.inference.loading import load_model
from src.models.parameters import parameter_groups
from src.training.reporting.metrics_file import read_metrics
from src.training.trainable import freeze_all_but
from tests.models.tiny import random_tokens, tiny_model
from tests.training.runs import assert_same_weights, loss_steps, losses, weights
from tests.training.rwkv_lm_lines import RUN, changed

STATES = {"blocks.0.att.time_state", "blocks.1.att.time_state"}
CPU = torch.device("cpu")


def base_model(folder: Path) -> dict[str, torch.Tensor]:
    """Writes a base model as rwkv-init.pth, in bf16; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("6", vocab_size=257, head_size=64)
    base = {name: value.bfloat16() for name, value in model.state_dict().items()}
    torch.save(base, folder / "rwkv-init.pth")
    return base


@pytest.fixture
def tune(corpus: Path) -> Callable[..., int]:
    """Runs the state-tuning line of RWKV-LM v5 on the small corpus: 9 steps of 2048 tokens."""

    def run(folder: Path, **changes: object) -> int:
        return train.main(changed(RUN["v5"], **{
            "data_file": corpus, "proj_dir": folder, "my_testing": "x060", "n_layer": 2,
            "n_embd": 64, "vocab_size": 257, "accelerator": "cpu", "ctx_len": 128,
            "my_exit_tokens": 17887, "magic_prime": 137, "wandb": "", "strategy": "auto",
            "train_type": "states", "load_partial": 1, "lr_init": 1, "lr_final": 0.01,
            "warmup_steps": 10, **changes,
        }))

    return run


def test_only_the_states_learn_and_only_they_are_published(
    tune: Callable[..., int], tmp_path: Path
):
    base = base_model(tmp_path)
    assert tune(tmp_path) == 0
    assert list(losses(tmp_path)) == list(range(9))
    published = weights(tmp_path / "rwkv-final.pth")
    assert set(published) == STATES
    assert all(value.shape == (1, 64, 64) for value in published.values())
    assert all(value.abs().max() > 0.01 for value in published.values())
    state = load_state(tmp_path / "rwkv-final.state")
    assert set(state["weights"]) == {*base, *STATES}
    for name, value in base.items():
        assert torch.equal(state["weights"][name], value.float()), name
    assert {key: set(found) for key, found in state["moments"].items()} == {
        "exp_avg": STATES, "exp_avg_sq": STATES
    }


def test_tuned_states_lower_the_loss_of_the_base_model(tune: Callable[..., int], tmp_path: Path):
    base_model(tmp_path)
    assert tune(tmp_path, precision="fp32", my_exit_tokens=4 * 17887, warmup_steps=2) == 0
    found = list(losses(tmp_path).values())
    assert sum(found[-5:]) / 5 < sum(found[:5]) / 5 - 0.02
    tuned = load_model(tmp_path / "rwkv-init.pth", device=CPU, dtype=torch.float32,
                       states=tmp_path / "rwkv-final.pth")
    bare = load_model(tmp_path / "rwkv-init.pth", device=CPU, dtype=torch.float32)
    assert not torch.allclose(prefill(tuned, [1, 2])[0], prefill(bare, [1, 2])[0])


def test_the_rate_is_that_of_the_reference(tune: Callable[..., int], tmp_path: Path):
    base_model(tmp_path)
    # 200499 tokens, ctx 512, batch 8, 1 to 0.01, warmup 10; here a quarter of context and tokens
    tune(tmp_path, ctx_len=128, micro_bsz=8, my_exit_tokens=200499 // 4 + 1, max_steps=21,
         adam_eps="1e-8")
    rates = {r["step"]: r["lr"] for r in read_metrics(tmp_path)}
    for step, rate in {0: 0.01, 5: 0.505, 10: 1.0, 20: 0.847529}.items():
        assert rates[step] == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_frozen_weights_get_no_gradients(weight_decay: float):
    model = tiny_model("6", options={"train_states": True}).train()
    groups = parameter_groups(model, weight_decay=weight_decay, train_type="states")
    freeze_all_but(model, groups)
    assert [(g.lr_factor, g.weight_decay, set(g.names)) for g in groups] == [
        (1.0, weight_decay, STATES)
    ]
    tokens = random_tokens(2, 17)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == STATES


def test_a_paused_tuning_goes_on_with_its_base_model(tune: Callable[..., int], tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base_model(whole), base_model(parts)
    assert tune(whole) == 0
    assert tune(parts, max_steps=4) == 0
    assert set(weights(parts / "rwkv-0.pth")) == STATES
    assert tune(parts) == 0
    assert loss_steps(parts) == list(range(9))
    assert losses(parts) == losses(whole)
    assert_same_weights(parts / "rwkv-final.pth", whole / "rwkv-final.pth")


@pytest.mark.parametrize("name", ["rwkv-0.pth", "rwkv-init-state.pth"])
def test_states_that_rwkv_lm_left_go_on_from_their_base_model(
    tune: Callable[..., int], tmp_path: Path, name: str
):
    base = base_model(tmp_path)
    states = {key: torch.full((1, 64, 64), 0.25, dtype=torch.bfloat16) for key in STATES}
    torch.save(states, tmp_path / name)
    # So small a rate leaves the states where they began.
    begin = 40320 // 16 if name == "rwkv-0.pth" else 0
    assert tune(tmp_path, my_exit_tokens=(begin + 2) * 2048, lr_init="1e-9", lr_final="1e-9") == 0
    assert loss_steps(tmp_path) == [begin, begin + 1]
    final = load_state(tmp_path / "rwkv-final.state")["weights"]
    for key, value in {**base, **states}.items():
        assert torch.allclose(final[key], value.float(), atol=1e-6), key


def test_states_without_a_base_model_are_refused(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({key: torch.zeros(1, 64, 64) for key in STATES}, tmp_path / "rwkv-0.pth")
    assert tune(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "rwkv-0.pth" in err and "base model" in err and "rwkv-init.pth" in err


def test_a_version_without_states_is_refused(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tiny_model("4", vocab_size=257)
    assert isinstance(model.config, ModelConfig)
    torch.save(model.state_dict(), tmp_path / "rwkv-init.pth")
    assert tune(tmp_path, my_testing="") == 2
    assert "RWKV-4 has no initial state" in capsys.readouterr().err
