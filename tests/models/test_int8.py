"""Matrices rounded to int8 with a scale per row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rwkv_train.models.int8 import Int8Linear, round_to_int8
from rwkv_train.models.layers import Linear
from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close, relative_rms
from tests.models.tiny import VERSIONS, random_tokens, tiny_model


def test_every_number_becomes_the_nearest_step_of_its_row():
    matrix = torch.tensor([[-2.54, 0.011, 0.009, 1.0], [0, 0, 0, 0], [1e-3, 0, 0, -5e-4]])
    layer = Int8Linear(matrix)
    assert layer.weight.tolist() == [[-127, 1, 0, 50], [0, 0, 0, 0], [127, 0, 0, -64]]
    error = (layer.widened(torch.float32) - matrix).abs()
    assert bool((error <= layer.scale[:, None] * 0.5001).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_few_and_many_rows_give_the_product_of_the_rounded_matrix(rows: int, dtype: torch.dtype):
    layer = Int8Linear(torch.randn(20, 30, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(1, rows, 30, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    assert layer(x).dtype == dtype
    assert_close("y", layer(x), expected, 1e-6 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rounded_model_is_nearly_the_same_one(version: str):
    model = tiny_model(version).requires_grad_(False)
    tokens = random_tokens(2, 12)
    expected, _ = model(tokens)
    matrices = sum(isinstance(part, Linear) for part in model.modules())
    round_to_int8(model)
    found, _ = model(tokens)
    assert sum(isinstance(part, Int8Linear) for part in model.modules()) == matrices
    assert not any(isinstance(part, Linear) for part in model.modules())
    # A step is 1/127 of a row's largest number.
    assert 1e-4 < relative_rms(found, expected) < 0.1


def test_the_head_gives_the_losses_of_its_own_logits():
    model = tiny_model("7").requires_grad_(False)
    round_to_int8(model)
    tokens, ids = random_tokens(2, 7), random_tokens(2, 7, seed=4)
    logits, _ = model(tokens)
    losses, _ = model.token_losses(tokens, ids)
    assert_close("losses", losses, F.cross_entropy(logits.mT, ids, reduction="none"), 1e-5)
    with pytest.raises(AssertionError, match="no gradients"):
        model.head(torch.zeros(1, 1, 64), Targets(ids[:1, :1]))
