"""Parameters by kind: as published, and tensor by tensor those of the models that are built."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import ConfigError
from rwkv_train.models.registry import build_model
from rwkv_train.planning.family import PUBLISHED, published_sizes
from rwkv_train.planning.parameter_table import (
    ParameterKind,
    is_planned,
    layer_state,
    parameter_table,
    tensor_shapes,
    trained_state,
)

# Numbers of parameters of published files and of the reference's own classes.
COUNTS = {
    "4": [169342464, 430397440, 1515106304, 2984627200, 7392649216, 14148597760],
    "5": [None, None, 1577754624, 3062999040, 7518044160],
    "6": [None, None, 1599873024, 3099863040, 7635746816, 14069088256],
    "7": [191084544, 450834432, 1527668736, 2948065280, 7199932416, None],
}
ODD = [
    *(ModelConfig(rwkv_version=v, n_layer=3, n_embd=128, vocab_size=300) for v in "4567"),
    ModelConfig("4", 2, 64, dim_att=128, dim_ffn=96, vocab_size=77, head_qk=32),
    ModelConfig("5", 1, 64, vocab_size=77, head_size=32, head_qk=33),
    ModelConfig("6", 2, 64, vocab_size=77, head_size=16, rank_mix=7, rank_decay=9),
    ModelConfig(
        *("7", 2, 96),
        vocab_size=77,
        dim_ffn=160,
        head_size=32,
        rank_decay=7,
        rank_iclr=9,
        rank_value=11,
        rank_gate=13,
    ),
]


def built(model: ResolvedModel, *, train_states: bool = False) -> dict[str, tuple[int, ...]]:
    """Returns key -> shape of a model's parameters, without memory for them."""
    with torch.device("meta"):
        network = build_model(model, train_states=train_states)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("version", PUBLISHED)
def test_published_models_have_the_published_numbers_of_parameters(version: str):
    for row, published in zip(PUBLISHED[version], COUNTS[version], strict=True):
        given = ModelConfig(rwkv_version=version)
        model = complete_model(published_sizes(row.names[0], given))
        total = parameter_table(model).total
        assert published in (None, total), row
        assert sum(torch.Size(shape).numel() for shape in built(model).values()) == total, row


@pytest.mark.parametrize("given", ODD, ids=lambda given: f"{given.rwkv_version}-{given.n_embd}")
def test_every_tensor_is_listed_with_its_shape(given: ModelConfig):
    model = complete_model(given)
    listed = {
        tensor.key.replace("*", str(layer)): tensor.shape
        for tensor in tensor_shapes(model)
        for layer in range(tensor.copies)
    }
    assert listed == built(model)


@pytest.mark.parametrize("given", ODD[:4], ids=lambda given: given.rwkv_version)
def test_the_states_that_are_trained_are_those_that_a_model_adds(given: ModelConfig):
    model = complete_model(given)
    whole = built(model, train_states=True)
    added = sum(torch.Size(s).numel() for name, s in whole.items() if name.endswith("time_state"))
    assert added == model.n_layer * trained_state(model)


def test_kinds_are_counted_apart():
    # D = 64, F = 256, V = 100, ranks 32, one layer: worked out from the table of rwkv7.py.
    model = complete_model(ModelConfig("7", 1, 64, vocab_size=100))
    kinds = parameter_table(model).kinds
    assert kinds == {
        ParameterKind.EMBEDDING: 6400,
        ParameterKind.HEAD: 6400,
        ParameterKind.TIME_MIX: 4 * 64 * 64,
        ParameterKind.LOW_RANK: 4 * 2 * 64 * 32,
        ParameterKind.CHANNEL_MIX: 2 * 64 * 256,
        # ln0, ln1, ln2, ln_out, ln_x: two each; mixes 7; w0, a0, v0; k_k, k_a; r_k
        ParameterKind.VECTORS: 64 * (5 * 2 + 7 + 3 + 2 + 1),
    }
    assert parameter_table(model).products == 6400 + 16384 + 16384 + 32768


def test_a_state_has_a_matrix_a_head_or_three_numbers_a_channel():
    four, seven = (complete_model(ODD[index]) for index in (0, 3))
    assert layer_state(four) == 3 * 128
    assert layer_state(seven) == 2 * 64 * 64
    assert parameter_table(seven).state == 3 * 2 * 64 * 64


def test_all_versions_are_listed_and_another_is_refused_by_name():
    assert all(is_planned(name) for name in VERSIONS)
    model = dataclasses.replace(complete_model(ODD[0]), rwkv_version="99")
    assert not is_planned("99")
    with pytest.raises(ConfigError, match="RWKV-99 cannot be planned"):
        parameter_table(model)
