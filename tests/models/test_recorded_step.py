"""A recorded step computes what the model does, one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.recorded_step import RecordedStep
from rwkv_train.models.state import ModelState, map_state
from rwkv_train.ops import matvec
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

# Of results in bf16, which are rounded at every operator of a block.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def frozen(version: str, dtype: torch.dtype = torch.float32, **options: int) -> RWKV:
    return tiny_model(version, **options).to(dtype).requires_grad_(False)


def step_of(model: RWKV, *, native: bool = True) -> RecordedStep:
    """A step by the native kernels of whole models, or by the list of operators."""
    step = RecordedStep(model)
    if not native:
        step._native = None
    return step


def past(model: RWKV, batch: int) -> ModelState:
    with torch.no_grad():
        return model.features(random_tokens(batch, 6))[1]


def tensors(state: ModelState) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda tensor: found.append(tensor) or tensor, state)
    return found


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_it_gives_the_features_logits_and_states_of_the_model(version: str, dtype: torch.dtype):
    model = frozen(version, dtype, n_layer=3)
    step = step_of(model, native=False)
    expected = state = past(model, 2)
    # The second token runs what the first one recorded.
    for token in (7, 8):
        tokens = torch.tensor([[token], [token + 20]])
        features, state = step.features(tokens, state)
        with torch.no_grad():
            usual, expected = model.features(tokens, expected)
            logits = model.head(usual)
        assert features.dtype == usual.dtype and features.shape == usual.shape
        assert_close("features", features, usual, LIMITS[dtype])
        assert_close("logits", step.logits(features[:, 0]), logits[:, 0], LIMITS[dtype])
        for found, wanted in zip(tensors(state), tensors(expected), strict=True):
            assert found.dtype == wanted.dtype
            assert_close("state", found, wanted, LIMITS[dtype])


@pytest.mark.parametrize(
    ("version", "native"), [*((version, True) for version in VERSIONS), ("7", False)]
)
def test_a_sequence_gives_the_same_bits_in_every_company(version: str, native: bool):
    model = frozen(version)
    if not matvec.is_served_natively(model.emb.weight[:1]):
        pytest.skip("without the native kernel a product's rounding depends on its rows")
    step, state, tokens = (
        step_of(model, native=native),
        past(model, 3),
        torch.tensor([[3], [9], [4]]),
    )
    together, after = step.features(tokens, state)
    for row in range(3):
        own = slice(row, row + 1)
        alone, left = step.features(
            tokens[own], map_state(lambda t, own=own: t[own].clone(), state)
        )
        assert torch.equal(alone, together[own])
        assert torch.equal(step.logits(alone[:, 0]), step.logits(together[:, 0])[own])
        for found, all_rows in zip(tensors(left), tensors(after), strict=True):
            assert torch.equal(found, all_rows[own])


def test_blocks_of_one_shape_share_a_recording_and_not_their_weights():
    model = frozen("7", n_layer=4)
    step = step_of(model, native=False)
    step.features(torch.tensor([[3]]), past(model, 1))
    # The first block, the three others, and the last norm.
    assert len(step._recordings) == 3 and len(step._parts) == 5


def test_blocks_with_other_settings_are_recorded_apart():
    model = frozen("5", n_layer=3)
    model.blocks[2].ln1.eps = 0.5
    step, state = step_of(model, native=False), past(model, 1)
    found, _ = step.features(torch.tensor([[3]]), state)
    with torch.no_grad():
        expected, _ = model.features(torch.tensor([[3]]), state)
    assert_close("features", found, expected, 1e-5)


def test_weights_in_training_and_large_batches_are_left_to_the_model():
    assert not RecordedStep(tiny_model("7")).serves(1)
    assert RecordedStep(frozen("7")).serves(8) and not RecordedStep(frozen("7")).serves(9)
