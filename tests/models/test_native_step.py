"""The native step of whole models computes what their forward pass does, one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.int8 import round_to_int8
from rwkv_train.models.native_step import NativeStep
from rwkv_train.models.state import ModelState, map_state
from tests.helpers import assert_close
from tests.models.tiny import MATRIX_VERSIONS, VERSIONS, random_tokens, tiny_model
from tests.ops.native_cases import require_kernel

# Within a step all is in fp32; the model rounds to 16 bits at every operator.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def kernels():
    require_kernel("token_step")


def frozen(version: str, dtype: torch.dtype = torch.float32, **options: object) -> RWKV:
    return tiny_model(version, **options).to(dtype).requires_grad_(False)


def tensors(state: ModelState) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda tensor: found.append(tensor) or tensor, state)
    return found


def assert_agrees(model: RWKV, exact: RWKV, batch: int, limit: float, tokens: int = 2) -> None:
    """Compares the steps of `model` with the forward pass of `exact`, behind a prompt."""
    step = NativeStep(model)
    assert step.serves(batch)
    with torch.no_grad():
        _, state = model.features(random_tokens(batch, 6))
        _, expected = exact.features(random_tokens(batch, 6))
        for n in range(tokens):
            token = random_tokens(batch, 1, seed=n)
            found, state = step.features(token, state)
            wanted, expected = exact.features(token, expected)
    assert found.dtype == model.emb.weight.dtype and found.shape == wanted.shape
    assert_close("features", found, wanted, limit)
    for after, other in zip(tensors(state), tensors(expected), strict=True):
        assert after.dtype == torch.float32 and after.shape == other.shape
        assert_close("state", after, other, limit)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_it_gives_the_features_and_the_state_of_the_model(version: str, dtype: torch.dtype):
    model = frozen(version, dtype, n_layer=3)
    assert_agrees(model, model, 3, LIMITS[dtype])


@pytest.mark.parametrize("version", VERSIONS)
def test_bf16_weights_give_what_they_give_in_fp64(version: str):
    model = frozen(version, torch.bfloat16)
    exact = tiny_model(version).double().requires_grad_(False)
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    # The prompt was read in bf16; the features of the step themselves are rounded once.
    assert_agrees(model, exact, 1, 3e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_matrices_give_what_their_model_does(version: str):
    model = frozen(version)
    round_to_int8(model)
    assert_agrees(model, model, 2, 1e-5)


@pytest.mark.parametrize("logit", [-20.0, -6.0, 3.0, 20.0])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_decay_is_that_of_the_model(version: str, logit: float):
    model = frozen(version)
    for block in model.blocks:
        (block.att.w0 if version == "7" else block.att.time_decay).fill_(logit)
    assert_agrees(model, frozen_in_fp64(model, version), 1, 1e-5, tokens=20)


def frozen_in_fp64(model: RWKV, version: str) -> RWKV:
    exact = tiny_model(version).double().requires_grad_(False)
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return exact


@pytest.mark.parametrize("version", MATRIX_VERSIONS)
def test_widths_that_are_no_whole_vectors_and_other_settings_count(version: str):
    model = frozen(version, n_embd=96, head_size=12)
    for n, block in enumerate(model.blocks):
        block.ln1.eps, block.ln2.eps, block.att.ln_x.eps = 0.1 + n, 0.2 + n, 0.3 + n
    model.ln_out.eps = 0.4
    assert_agrees(model, model, 8, 1e-5)


def test_the_state_before_stays_as_it_was():
    model = frozen("7")
    with torch.no_grad():
        _, state = model.features(random_tokens(1, 3))
    copies = [tensor.clone() for tensor in tensors(state)]
    NativeStep(model).features(torch.tensor([[3]]), state)
    assert all(torch.equal(one, other) for one, other in zip(tensors(state), copies))


def test_models_that_are_more_than_their_formula_are_left_to_the_operators():
    assert NativeStep(frozen("5")).serves(8)
    assert not NativeStep(frozen("5")).serves(9)
    assert not NativeStep(frozen("5", torch.float64)).serves(1)
    assert not NativeStep(frozen("5", options={"wkv_backend": "reference"})).serves(1)
    assert not NativeStep(frozen("5", dropout=0.5).train()).serves(1)


def test_a_token_outside_the_vocabulary_is_no_row():
    model = frozen("4")
    with torch.no_grad():
        _, state = model.features(random_tokens(1, 3))
    with pytest.raises(IndexError, match="token 50 is outside of 50 rows"):
        NativeStep(model).features(torch.tensor([[50]]), state)
