"""Vectors of texts, against features that the model gives for the whole text at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkv_train.inference.embed.earlier_end import end_behind
from rwkv_train.inference.embed.pooling import pooled_vectors
from rwkv_train.inference.engine.engine import Engine
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

LENGTHS = (5, 1, 40, 17, 17)
TEXTS = [random_tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


def by_hand(x: Tensor, pooling: str) -> Tensor:
    """The vector of features [T, C], by the definition."""
    if pooling == "last":
        return x[-1]
    if pooling == "mean":
        return x.mean(0)
    places = torch.arange(1, len(x) + 1)[:, None]
    return (x * places).sum(0) / places.sum()


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Rounding of fp32 in another order of sums is all that may lie between."""
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pooling", ["mean", "last", "weighted"])
def test_a_vector_is_that_of_its_text_alone_and_at_once(version: str, pooling: str):
    model = tiny_model(version)
    with torch.no_grad():
        features = [model.features(torch.tensor([text]))[0][0] for text in TEXTS]
    # Pieces of a token or two a text, whose ends lie everywhere.
    for piece_tokens in (7, 1024):
        found = pooled_vectors(Engine(model, piece_tokens=piece_tokens), TEXTS, pooling)
        assert found.shape == (5, 64)
        for vector, x in zip(found, features):
            assert_near(vector, by_hand(x, pooling))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_state_is_the_last_layers_behind_the_text(version: str):
    model = tiny_model(version)
    found = pooled_vectors(Engine(model, piece_tokens=7), TEXTS, "state")
    for vector, text in zip(found, TEXTS):
        with torch.no_grad():
            wkv = model.features(torch.tensor([text]))[1][-1].wkv
        assert_near(vector, wkv[0][0] / wkv[1][0] if version == "4" else wkv[0].flatten())
    assert found.shape == (5, 64 if version == "4" else 2 * 32 * 32)


def test_the_weighted_mean_of_one_token_is_the_last_one():
    engine = Engine(tiny_model("7"))
    found = [pooled_vectors(engine, [[9], [3]], pooling) for pooling in ("weighted", "last")]
    assert torch.equal(*found)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_earlier_layer_gives_the_residual_stream_behind_it(version: str):
    model, whole = tiny_model(version), tiny_model(version)
    streams: list[Tensor] = []
    whole.blocks[0].register_forward_hook(lambda *call: streams.append(call[2][0].total()))
    with torch.no_grad():
        whole.features(torch.tensor([TEXTS[2]]))
    end_behind(model, 0)
    (found,) = pooled_vectors(Engine(model), [TEXTS[2]], "mean")
    assert len(model.blocks) == 1
    assert_near(found, streams[0][0].mean(0))


def test_narrow_models_are_summed_in_fp32():
    model = tiny_model("6").to(torch.bfloat16)
    text = random_tokens(1, 600, seed=3)[0].tolist()
    with torch.no_grad():
        expected = model.features(torch.tensor([text]))[0][0].double().mean(0)
    (found,) = pooled_vectors(Engine(model, piece_tokens=600), [text], "mean")
    assert found.dtype == torch.float32
    # A sum of 600 features in bf16 would be off by a percent.
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_trained_initial_states_begin_a_text():
    model = tiny_model("7", options={"train_states": True})
    with torch.no_grad():
        expected = model.features(torch.tensor([TEXTS[0]]))[0][0, -1]
    (found,) = pooled_vectors(Engine(model, piece_tokens=2), [TEXTS[0]], "last")
    assert_near(found, expected)
    plain = tiny_model("7")
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (pooled_vectors(Engine(plain), [TEXTS[0]], "last")[0] - expected).abs().max() > 1e-3
