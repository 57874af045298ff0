"""State tuning: only the initial states learn, and a resume keeps the base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.inference.generate import prefill
from rwkv_train.inference.loading import load_model
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.ops.head_loss import Targets
from rwkv_train.training.optim.freeze import freeze_all_but
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.models.tiny import random_tokens, tiny_model
from tests.training.runs import assert_same_weights, loss_steps, losses, weights
from tests.training.rwkv_lm_lines import RUN, changed

STATES = {"blocks.0.att.time_state", "blocks.1.att.time_state"}
CPU = torch.device("cpu")


def base_model(folder: Path, version: str = "6") -> dict[str, torch.Tensor]:
    """Writes a base model as rwkv-init.pth, in bf16; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = {} if version == "4" else {"head_size": 64}
    model = tiny_model(version, vocab_size=257, **heads)
    base = {name: value.bfloat16() for name, value in model.state_dict().items()}
    torch.save(base, folder / "rwkv-init.pth")
    return base


@pytest.fixture
def tune(corpus: Path) -> Callable[..., int]:
    """Runs the state-tuning line of RWKV-LM v5 on the small corpus: 9 steps of 2048 tokens."""

    def run(folder: Path, **changes: object) -> int:
        argv = changed(
            RUN["v5"],
            **{
                "data_file": corpus,
                "proj_dir": folder,
                "my_testing": "x060",
                "n_layer": 2,
                "n_embd": 64,
                "vocab_size": 257,
                "accelerator": "cpu",
                "ctx_len": 128,
                "my_exit_tokens": 17887,
                "magic_prime": 137,
                "wandb": "",
                "strategy": "auto",
                "train_type": "states",
                "load_partial": 1,
                "lr_init": 1,
                "lr_final": 0.01,
                "warmup_steps": 10,
                **changes,
            },
        )
        if "load_model" in changes:
            # A stage that resumes takes no --load_model.
            stage = argv.index("--my_pile_stage")
            argv[stage : stage + 2] = []
        return train.main(argv)

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
    assert set(state["weights"]) == STATES
    merged = weights(tmp_path / "rwkv-final.merged.pth")
    assert set(merged) == {*base, *STATES}
    for name, value in {**base, **published}.items():
        assert torch.equal(merged[name], value), name
    assert {key: set(found) for key, found in state["moments"].items()} == {
        "exp_avg": STATES,
        "exp_avg_sq": STATES,
    }


def test_tuned_states_lower_the_loss_of_the_base_model(tune: Callable[..., int], tmp_path: Path):
    base_model(tmp_path)
    assert tune(tmp_path, precision="fp32", my_exit_tokens=4 * 17887, warmup_steps=2) == 0
    found = list(losses(tmp_path).values())
    assert sum(found[-5:]) / 5 < sum(found[:5]) / 5 - 0.02
    tuned = load_model(
        tmp_path / "rwkv-init.pth",
        device=CPU,
        dtype=torch.float32,
        states=tmp_path / "rwkv-final.pth",
    )
    bare = load_model(tmp_path / "rwkv-init.pth", device=CPU, dtype=torch.float32)
    assert not torch.allclose(prefill(tuned, [1, 2])[0], prefill(bare, [1, 2])[0])


def test_the_rate_is_that_of_the_reference(tune: Callable[..., int], tmp_path: Path):
    base_model(tmp_path)
    # 200499 tokens, ctx 512, batch 8, 1 to 0.01, warmup 10; here a quarter of context and tokens
    tune(
        tmp_path,
        ctx_len=128,
        micro_bsz=8,
        my_exit_tokens=200499 // 4 + 1,
        max_steps=21,
        adam_eps="1e-8",
    )
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
    model.loss(tokens[:, :-1], Targets(tokens[:, 1:])).backward()
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
    final = weights(tmp_path / "rwkv-final.merged.pth")
    for key, value in {**base, **states}.items():
        assert torch.allclose(final[key].float(), value.float(), atol=1e-6), key


def test_states_without_a_base_model_are_refused(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({key: torch.zeros(1, 64, 64) for key in STATES}, tmp_path / "rwkv-0.pth")
    assert tune(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "rwkv-0.pth" in err and "base model" in err and "rwkv-init.pth" in err


@pytest.mark.parametrize(
    ("version", "name", "shape"),
    [("4", "", (2, 64)), ("5", "x052", (1, 64, 64)), ("7", "x070", (1, 64, 64))],
)
def test_every_version_has_states_to_tune_and_writes_with_them(
    tune: Callable[..., int], tmp_path: Path, version: str, name: str, shape: tuple[int, ...]
):
    base_model(tmp_path, version)
    assert tune(tmp_path, my_testing=name, precision="fp32", lr_init="0.1", warmup_steps=2) == 0
    found = list(losses(tmp_path).values())
    assert found[-1] < found[0]
    assert {tuple(v.shape) for v in weights(tmp_path / "rwkv-final.pth").values()} == {shape}
    apart = load_model(
        tmp_path / "rwkv-init.pth",
        device=CPU,
        dtype=torch.float32,
        states=tmp_path / "rwkv-final.pth",
    )
    merged = load_model(tmp_path / "rwkv-final.merged.pth", device=CPU, dtype=torch.float32)
    bare = load_model(tmp_path / "rwkv-init.pth", device=CPU, dtype=torch.float32)
    logits = prefill(apart, [1, 2])[0]
    assert torch.equal(logits, prefill(merged, [1, 2])[0])
    assert not torch.allclose(logits, prefill(bare, [1, 2])[0])


def test_a_base_model_that_changed_is_refused_and_nothing_is_lost(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = base_model(tmp_path)
    assert tune(tmp_path, max_steps=4) == 0
    saved = (tmp_path / "rwkv-0.state").read_bytes()
    torch.save({**base, "head.weight": 2 * base["head.weight"]}, tmp_path / "rwkv-init.pth")
    assert tune(tmp_path) == 2
    assert "not the base model" in capsys.readouterr().err
    (tmp_path / "rwkv-init.pth").unlink()
    assert tune(tmp_path) == 2
    assert "not there" in capsys.readouterr().err
    assert (tmp_path / "rwkv-0.state").read_bytes() == saved
    # It may have moved, also into another format.
    save_file(base, tmp_path / "elsewhere.safetensors")
    assert tune(tmp_path, load_model=tmp_path / "elsewhere.safetensors") == 0
    assert loss_steps(tmp_path) == list(range(9))


def test_a_file_of_states_is_refused_as_base_of_anything_else(
    tune: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = base_model(tmp_path)
    # a file that lost every time mix, as one does that was filled up from a file of states
    lost = {k: v for k, v in base.items() if ".att." not in k or ".0.att" in k}
    torch.save(lost, tmp_path / "rwkv-init.pth")
    assert tune(tmp_path) == 2
    assert "whole layers missing" in capsys.readouterr().err
