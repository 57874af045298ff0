"""What DeepSpeed makes for a run is gone when the run is over."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from rwkv_train.models.backbone import RWKV

Run = Callable[..., int]


def models() -> set[int]:
    """The models that are alive."""
    gc.collect()
    return {id(found) for found in gc.get_objects() if isinstance(found, RWKV)}


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_a_run_leaves_no_model_behind(run_training: Run, stage: str):
    before, product = models(), torch.nn.functional.linear
    assert run_training(strategy=f"deepspeed_stage_{stage}", max_steps=2) == 0
    assert models() <= before
    # ZeRO 3 multiplies by a function of its own.
    assert torch.nn.functional.linear is product
