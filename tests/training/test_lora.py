"""Runs with low-rank adapters: what is trained, what is written, how a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.checkpoint import merge as merge_tool
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.inference.generate import prefill
from rwkv_train.inference.loading import load_model
from tests.models.tiny import VERSIONS, random_tokens, tiny_model
from tests.training.runs import assert_same_weights, loss_steps, losses, start, weights

CPU = torch.device("cpu")
# 1500 tokens at 4 x 32 a step
STEPS = 12


def base_model(path: Path, version: str, dtype: torch.dtype = torch.bfloat16) -> dict:
    """Writes a base model, in bf16 as published ones are; returns it."""
    model = tiny_model(version, vocab_size=257)
    base = {name: value.to(dtype) for name, value in model.state_dict().items()}
    torch.save(base, path)
    return base


@pytest.fixture
def adapt(flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., int]:
    """Trains adapters of base.pth."""

    def run(folder: str, **changes: object) -> int:
        if not (tmp_path / "base.pth").exists():
            base_model(tmp_path / "base.pth", "6")
        values: dict[str, object] = {
            "proj_dir": tmp_path / folder,
            "load_model": tmp_path / "base.pth",
            "train_type": "lora",
            "lora_r": 4,
            "rwkv_version": None,
            "n_layer": None,
            "n_embd": None,
            "head_size": None,
            "lr_init": "3e-3",
            **changes,
        }
        return train.main(flags(**values))

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_adapters_learn_and_every_file_says_the_same(
    adapt: Callable[..., int], tmp_path: Path, version: str
):
    base = base_model(tmp_path / "base.pth", version)
    before = (tmp_path / "base.pth").read_bytes()
    more = {"lora_init": "pissa", "lora_dora": 1, "lora_train": "ln"} if version == "6" else {}
    assert adapt("run", **more) == 0
    found = losses(tmp_path / "run")
    assert list(found) == list(range(STEPS)) and found[STEPS - 1] < found[0] - 0.05
    final = tmp_path / "run" / "rwkv-final.pth"
    merged = weights(final)
    assert list(merged) == list(base)
    changed = {name for name in base if not torch.equal(merged[name], base[name].float())}
    matrices = {
        n for n in base if n.startswith("blocks") and n.endswith(".weight") and ".ln" not in n
    }
    norms = {n for n in base if ".ln" in n or n.startswith("ln_")} if version == "6" else set()
    assert changed == matrices | norms
    # The adapter alone, merged by the tool, is the merged checkpoint.
    again = tmp_path / "again.pth"
    command = [tmp_path / "base.pth", tmp_path / "run" / "rwkv-final.lora.safetensors", again]
    assert merge_tool.main([*map(str, command), "--precision", "fp32"]) == 0
    assert_same_weights(again, final)
    assert (tmp_path / "base.pth").read_bytes() == before
    model = load_model(final, device=CPU, dtype=torch.float32)
    assert torch.isfinite(prefill(model, [1, 2, 3])[0]).all()


def test_the_state_holds_the_adapters_and_their_moments_alone(
    adapt: Callable[..., int], tmp_path: Path
):
    assert adapt("run", lora_targets="att.key", lora_train="ln") == 0
    state = load_state(tmp_path / "run" / "rwkv-final.state")
    names = set(state["weights"])
    assert all(names == set(found) for found in state["moments"].values())
    assert {n for n in names if "lora" in n} == {
        f"blocks.{layer}.att.key.lora_{which}" for layer in (0, 1) for which in "AB"
    }
    assert all(".ln" in n or n.startswith("ln_out") for n in names if "lora" not in n)


@pytest.mark.parametrize(
    "more",
    [{}, {"lora_init": "pissa", "lora_dropout": 0.3, "lora_train": "time,ln", "weight_decay": 0.1}],
    ids=["plain", "pissa"],
)
def test_a_run_in_three_parts_equals_the_run_in_one(
    adapt: Callable[..., int], tmp_path: Path, more: dict[str, object]
):
    assert adapt("whole", **more) == 0
    for steps in (3, 7, None):
        assert adapt("parts", max_steps=steps, **more) == 0
    assert loss_steps(tmp_path / "parts") == list(range(STEPS))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name in ("rwkv-final.pth", "rwkv-0.pth"):
        assert_same_weights(tmp_path / "parts" / name, tmp_path / "whole" / name)


def test_a_folder_with_its_base_model_may_be_moved(adapt: Callable[..., int], tmp_path: Path):
    (tmp_path / "run").mkdir()
    base_model(tmp_path / "run" / "rwkv-init.pth", "6")
    assert adapt("run", load_model=None, max_steps=5) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert adapt("moved", load_model=None) == 0
    assert loss_steps(tmp_path / "moved") == list(range(STEPS))


REFUSED = {
    "another rank": ({"lora_r": 8}, ["--lora_r 8", "lora_r 4"]),
    "another scale": ({"lora_alpha": 4}, ["--lora_alpha 4", "16"]),
    "other matrices": ({"lora_targets": "key"}, ["--lora_targets key"]),
    "all parameters": ({"train_type": "all", "lora_r": None}, ["--train_type all", "lora"]),
    "states": ({"train_type": "states", "lora_r": None}, ["--train_type states", "lora"]),
    "no such matrix": ({"proj_dir": "new", "lora_targets": "query"}, ["query", "att.key"]),
    "too large a rank": ({"proj_dir": "new", "lora_r": 65}, ["--lora_r 65", "64"]),
    "no base model": ({"proj_dir": "new", "load_model": None}, ["--load_model"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_what_cannot_go_on_and_loses_nothing(
    adapt: Callable[..., int], tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
):
    assert adapt("run", max_steps=5, epoch_steps=5) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    changes, named = REFUSED[case]
    changes = {**changes, "rwkv_version": 6, "head_size": 32, "n_layer": 2, "n_embd": 64}
    folder = str(changes.pop("proj_dir", "run"))
    capsys.readouterr()
    assert adapt(folder, **changes) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in named), err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_a_full_run_does_not_become_one_with_adapters(
    adapt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert adapt("run", train_type="all", lora_r=None, max_steps=5) == 0
    assert adapt("run") == 2
    assert "--train_type lora" in capsys.readouterr().err


def test_initial_weights_come_from_a_smaller_model(
    flags: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = base_model(tmp_path / "small.pth", "6", torch.float32)
    sizes = {"n_layer": 3, "n_embd": 128, "rwkv_version": None, "head_size": None}
    donor = {"load_model": tmp_path / "small.pth", "train_stage": 1, **sizes}
    assert train.main(flags(**donor)) == 0
    assert "2 layers of width 64 became 3 of width 128" in capsys.readouterr().out
    made = load_model(tmp_path / "out" / "rwkv-init.pth", device=CPU, dtype=torch.float32)
    tokens = random_tokens(1, 20, vocab_size=257)
    given = tiny_model("6", vocab_size=257)
    assert torch.equal(given.emb.weight, small["emb.weight"])
    with torch.no_grad():
        expected = given(tokens)[0]
        assert (made(tokens)[0] - expected).norm() < 0.5 * expected.norm()
    assert train.main(flags(**sizes, train_stage=3, max_steps=2)) == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "--train_stage 0"),
        ({"n_layer": 1, "n_embd": 128}, "--n_layer 1"),
        ({"n_layer": 3, "rwkv_version": 7}, "--rwkv_version 7"),
        ({"n_layer": 3, "load_model": "no.pth"}, "no.pth"),
    ],
)
def test_a_donor_that_does_not_fit_is_refused_before_anything_is_written(
    flags: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    named: str,
):
    base_model(tmp_path / "small.pth", "6")
    values = {
        "load_model": tmp_path / "small.pth",
        "train_stage": 1,
        "n_layer": None,
        "n_embd": None,
        "rwkv_version": None,
        "head_size": None,
        **changes,
    }
    assert train.main(flags(**values)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err
    assert not list((tmp_path / "out").glob("*"))


# Runs of two processes that follow each other: up to which step, under which strategy.
ACCUMULATING = {"micro_bsz": 1, "accumulate_grad_batches": 2}
PARTS = {
    "lora": [(4, "deepspeed_stage_2", {}), (8, "deepspeed_stage_3", ACCUMULATING)],
    "states": [(4, "deepspeed_stage_3", {}), (8, "ddp", {})],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "states"])
def test_a_run_goes_on_under_any_strategy_with_two_processes(
    flags: Callable[..., list[str]], tmp_path: Path, kind: str
):
    version = "7" if kind == "lora" else "4"
    base_model(tmp_path / "base.pth", version)
    mode = {
        "lora": {"train_type": "lora", "lora_r": 4, "lora_init": "pissa", "lora_train": "ln"},
        "states": {"train_type": "states", "lr_init": "0.1", "lr_final": "0.01"},
    }[kind]
    common = {
        "load_model": tmp_path / "base.pth",
        "rwkv_version": None,
        "n_layer": None,
        "n_embd": None,
        "head_size": None,
        "grad_cp": 1,
        "load_partial": 1,
        **mode,
    }
    one, many = tmp_path / "one", tmp_path / "many"
    assert train.main(flags(**common, proj_dir=one)) == 0
    for steps, strategy, batch in PARTS[kind]:
        values = {
            **common,
            "proj_dir": many,
            "devices": 2,
            "micro_bsz": 2,
            "max_steps": steps,
            "strategy": strategy,
            **batch,
        }
        done = start("train.py", *flags(**values), ranks=2)
        assert done.returncode == 0, done.stdout + done.stderr
    assert train.main(flags(**common, proj_dir=many)) == 0
    assert loss_steps(many) == list(range(STEPS))
    for step, loss in losses(one).items():
        assert losses(many)[step] == pytest.approx(loss, rel=1e-4), step
    expected = weights(one / "rwkv-final.pth")
    for name, value in weights(many / "rwkv-final.pth").items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name
