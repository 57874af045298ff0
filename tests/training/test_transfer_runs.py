"""A larger model made of a trained smaller one learns faster than one that starts anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.training.runs import losses

LARGE = {"n_layer": 4, "n_embd": 64}


@pytest.mark.parametrize("version", ["4", "7"])
def test_it_is_far_ahead_after_a_few_steps(
    flags: Callable[..., list[str]], tmp_path: Path, version: str
):
    kind = {"rwkv_version": version, "head_size": None if version == "4" else 32}
    small = flags(
        **kind, proj_dir=tmp_path / "small", exit_tokens=60 * 128, lr_init="1e-2", epoch_steps=1000
    )
    assert train.main(small) == 0
    learnt = list(losses(tmp_path / "small").values())
    assert learnt[-1] < 2.5

    def first_losses(folder: str, **start: object) -> list[float]:
        place = {"proj_dir": tmp_path / folder}
        sizes = {**LARGE, "rwkv_version": None, "head_size": None} if start else {**LARGE, **kind}
        assert train.main(flags(**place, **sizes, **start, train_stage=1)) == 0
        go_on = {**place, **LARGE, **kind, "exit_tokens": 15 * 128, "train_stage": 3}
        assert train.main(flags(**go_on)) == 0
        return list(losses(tmp_path / folder).values())

    made = first_losses("made", load_model=tmp_path / "small" / "rwkv-final.pth")
    anew = first_losses("anew")
    # It starts near where the small one ended, …
    assert made[0] < learnt[-1] + 0.2
    # … and fifteen steps later the other has not caught up, nor has it lost what it knew.
    assert made[-1] < anew[-1] - 1
    assert made[-1] < made[0] + 0.1
