"""Sizes: completed by the version's rules, read back from checkpoint shapes, refused when odd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError
from rwkv_train.models.registry import build_model, config_from_shapes, version_module
from tests.helpers import load_arrays
from tests.models.tiny import VERSIONS, tiny_config, tiny_model


def shapes_of(version, **sizes):
    """Shapes of a model's checkpoint, in reverse order: the order must not matter."""
    config = tiny_config(version, **sizes)
    with torch.device("meta"):
        state = build_model(config).state_dict()
    return config, {key: tuple(state[key].shape) for key in reversed(state)}


# Sizes of published models -> number of parameters and of tensors, from the specifications.
@pytest.mark.parametrize(
    ("version", "vocab", "layers", "width", "ranks", "count", "tensors"),
    [
        ("4", 50277, 12, 768, {}, 169_342_464, 222),
        ("4", 50277, 24, 1024, {}, 430_397_440, 438),
        ("4", 50277, 40, 5120, {}, 14_148_597_760, 726),
        ("5", 65536, 12, 768, {}, 192_807_936, 270),
        ("5", 65536, 24, 2048, {}, 1_577_754_624, 534),
        ("5", 65536, 32, 4096, {}, 7_518_044_160, 710),
        ("6", 65536, 12, 768, {}, 196_955_136, None),
        ("6", 65536, 24, 2048, {}, 1_599_873_024, None),
        ("6", 65536, 32, 4096, {}, 7_577_026_560, None),
        ("6", 65536, 61, 4096, {"rank_mix": 64, "rank_decay": 128}, 14_069_088_256, None),
        ("7", 65536, 12, 768, {}, 191_084_544, None),
        ("7", 65536, 24, 1024, {}, 453_980_160, None),
        ("7", 65536, 24, 1024, {"rank_value": 32, "rank_gate": 128}, 450_834_432, None),
        ("7", 65536, 24, 2048, {}, 1_530_814_464, None),
        ("7", 65536, 32, 2560, {}, 2_953_308_160, None),
        (
            "7",
            65536,
            32,
            4096,
            {"rank_decay": 128, "rank_iclr": 128, "rank_gate": 480},
            7_199_932_416,
            None,
        ),
    ],
)
def test_models_have_the_published_number_of_parameters(
    version, vocab, layers, width, ranks, count, tensors
):
    config = complete_model(
        ModelConfig(rwkv_version=version, n_layer=layers, n_embd=width, vocab_size=vocab, **ranks)
    )
    with torch.device("meta"):
        model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) == count
    if tensors is not None:
        assert len(model.state_dict()) == tensors


@pytest.mark.parametrize(
    ("version", "width", "expected"),
    [
        ("4", 768, 3072),
        ("5", 768, 2688),
        ("5", 96, 320),
        ("6", 2560, 8960),
        ("6", 4096, 14336),
        ("7", 1024, 4096),
    ],
)
def test_the_channel_mix_width_follows_the_version(version, width, expected):
    config = complete_model(
        ModelConfig(
            rwkv_version=version,
            n_embd=width,
            vocab_size=10,
            head_size=None if version == "4" else 32,
        )
    )
    assert config.dim_ffn == expected


@pytest.mark.parametrize(
    ("width", "decay", "value", "gate"),
    [
        (64, 32, 32, 32),
        (128, 32, 32, 64),
        (256, 32, 32, 64),
        (768, 64, 32, 128),
        (1024, 64, 64, 160),
        (2048, 128, 64, 224),
        (2560, 128, 96, 256),
        (4096, 160, 96, 320),
    ],
)
def test_rwkv7_ranks_follow_the_newest_trainer(width, decay, value, gate):
    config = complete_model(ModelConfig(rwkv_version="7", n_embd=width, vocab_size=10))
    assert (config.rank_decay, config.rank_iclr) == (decay, decay)
    assert (config.rank_value, config.rank_gate) == (value, gate)


@pytest.mark.parametrize("version", VERSIONS)
def test_completing_twice_changes_nothing(version):
    config = tiny_config(version)
    assert complete_model(config.as_given()) == config


def test_what_is_given_is_kept():
    config = complete_model(
        ModelConfig(
            rwkv_version="6",
            n_embd=128,
            dim_ffn=96,
            head_size=32,
            rank_mix=3,
            rank_decay=5,
            vocab_size=10,
            n_layer=2,
        )
    )
    assert (config.dim_ffn, config.head_size, config.rank_mix, config.rank_decay) == (96, 32, 3, 5)


def test_an_empty_configuration_becomes_rwkv7():
    config = complete_model(ModelConfig(vocab_size=256))
    assert (config.rwkv_version, config.n_layer, config.n_embd) == ("7", 6, 512)
    assert (config.dim_att, config.head_size) == (512, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 100}, "--n_embd 100 is not a multiple of 32; use 96"),
        ({"n_embd": 96}, "--n_embd 96 is not a multiple of --head_size 64"),
        ({"dim_ffn": 33}, "--dim_ffn 33 is not a multiple of 32"),
        ({"dim_att": 128, "n_embd": 64}, "--dim_att 128 differs from --n_embd 64"),
        ({"n_layer": 0}, "--n_layer 0: must be at least 1"),
        ({"vocab_size": -1}, "--vocab_size -1: must be at least 1"),
        ({"vocab_size": None}, "--vocab_size is not known"),
        ({"rank_mix": 0}, "--rank_mix 0: must be at least 1"),
        ({"rank_gate": 64}, "--rank_gate 64: RWKV-6 has no such size, only RWKV-7"),
        ({"head_qk": 8}, "--head_qk 8: RWKV-6 has no such size, only RWKV-4, 5"),
        ({"dropout": 1.0}, "--dropout 1.0: must be at least 0 and below 1"),
        ({"rwkv_version": "8"}, "version '8' is unknown, expected 4, 5, 6, 7"),
        ({"rwkv_version": "4", "head_size": 32}, "--head_size 32: RWKV-4 has no such size"),
        ({"rwkv_version": "4", "head_qk": -1}, "--head_qk -1: must be at least 0"),
        ({"rwkv_version": "7", "rank_mix": 32}, "--rank_mix 32: RWKV-7 has no such size"),
    ],
)
def test_impossible_sizes_are_refused_by_name(fields, message):
    config = replace(ModelConfig(rwkv_version="6", n_embd=128, n_layer=2, vocab_size=50), **fields)
    with pytest.raises(ConfigError) as caught:
        complete_model(config)
    assert message in str(caught.value)


def test_rwkv4_time_mix_may_be_wider_than_the_model():
    config = tiny_config("4", dim_att=96)
    model = build_model(config)
    assert model.blocks[0].att.output.weight.shape == (64, 96)


@pytest.mark.parametrize(
    ("version", "sizes"),
    [
        ("4", {}),
        ("4", {"dim_att": 96, "dim_ffn": 320, "head_qk": 8}),
        ("4", {"n_layer": 1}),
        ("5", {}),
        ("5", {"head_size": 64, "n_layer": 1}),
        ("5", {"head_qk": 8}),
        ("6", {}),
        ("6", {"head_size": 64, "rank_mix": 8, "rank_decay": 16, "n_layer": 1}),
        ("7", {}),
        ("7", {"rank_decay": 4, "rank_iclr": 8, "rank_value": 12, "rank_gate": 16}),
        ("7", {"n_layer": 1, "head_size": 16, "dim_ffn": 96}),
        ("7", {"n_layer": 12}),
    ],
)
def test_the_configuration_can_be_read_from_a_checkpoint(version, sizes):
    config, shapes = shapes_of(version, **sizes)
    assert complete_model(config_from_shapes(shapes)) == config


@pytest.mark.parametrize(("version", "name"), [("4", "4"), ("5", "5.2"), ("6", None), ("7", None)])
def test_the_vectors_are_told_apart(version, name):
    arrays = load_arrays(f"rwkv{version}_tiny")
    assert name is None or f'"version": "{name}"' in str(arrays["config"])
    shapes = {
        key.removeprefix("param/"): value.shape
        for key, value in arrays.items()
        if key.startswith("param/")
    }
    assert config_from_shapes(shapes).rwkv_version == version


@pytest.mark.parametrize("version", VERSIONS)
def test_flat_mixes_tell_the_same_as_spread_ones(version):
    config, shapes = shapes_of(version)
    flat = {
        key: shape[2:] if len(shape) == 3 and shape[:2] == (1, 1) else shape
        for key, shape in shapes.items()
    }
    assert flat != shapes
    assert complete_model(config_from_shapes(flat)) == config


def test_trained_states_do_not_change_the_version():
    for version in ("5", "6", "7"):
        model = tiny_model(version, options={"train_states": True})
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        assert complete_model(config_from_shapes(shapes)) == model.config


def test_rwkv7_does_without_the_unused_tensors_of_layer_0():
    config, shapes = shapes_of("7", rank_value=12)
    less = {
        key: shape
        for key, shape in shapes.items()
        if not key.startswith("blocks.0.att.v") or key.endswith("value.weight")
    }
    assert len(less) == len(shapes) - 3
    assert complete_model(config_from_shapes(less)) == config


@pytest.mark.parametrize("shape", [(2, 32), (2, 32, 1), (1, 2, 32)])
def test_rwkv5_decay_may_have_extra_axes(shape):
    config, shapes = shapes_of("5")
    assert (
        complete_model(config_from_shapes({**shapes, "blocks.0.att.time_decay": shape})) == config
    )


def renamed(shapes, old, new):
    return {key.replace(old, new): shape for key, shape in shapes.items()}


def without(shapes, part):
    return {key: shape for key, shape in shapes.items() if part not in key}


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        ("5", lambda s: {**s, "blocks.0.att.time_decay": (2,)}, "RWKV-5.0 or 5.1"),
        ("5", lambda s: {**s, "blocks.0.att.time_decay": (2, 1)}, "RWKV-5.0 or 5.1"),
        ("5", lambda s: without(without(s, "gate"), "time_mix_g"), "RWKV-5.0 or 5.1"),
        ("5", lambda s: {**s, "blocks.0.att.time_decay": (64,)}, "expected [heads, head size]"),
        ("5", lambda s: renamed(s, "time_faaaa", "time_first"), "a bonus named time_faaaa"),
        ("6", lambda s: without(s, "gate"), "x060a, x060b or x060c"),
        (
            "6",
            lambda s: {**s, "blocks.0.att.time_maa_w2": (4, 32, 64)},
            "expected [5, rank, width]",
        ),
        ("6", lambda s: {**s, "blocks.0.ffn.aa.weight": (224, 64)}, "MishGLU"),
        ("4", lambda s: {**s, "blocks.0.ffnPre.key.weight": (256, 64)}, "pre_ffn"),
        ("4", lambda s: {**s, "blocks.1.tiny_q.weight": (8, 64)}, "tiny attention"),
        ("4", lambda s: {**s, "blocks.0.pos_emb_x": (1, 8, 64)}, "position table"),
        ("7", lambda s: {**s, "blocks.0.ffn.s_emb.weight": (50, 64)}, "DeepEmbed"),
        ("7", lambda s: without(s, "blocks.0."), "lacks block 0 of 2"),
        ("7", lambda s: without(s, "emb."), "no tensor emb.weight"),
        ("7", lambda s: without(s, "blocks"), "no RWKV model"),
        ("7", lambda s: without(s, "att."), "no known version"),
        (
            "7",
            lambda s: {**s, "blocks.0.att.time_mix_k": (64,), "blocks.0.att.time_maa_k": (64,)},
            "RWKV-5 and RWKV-6 and RWKV-7",
        ),
        ("7", lambda s: {**s, "blocks.0.att.w1": (64,)}, "expected a matrix"),
        ("7", lambda s: {}, "no RWKV model"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(version, change, message):
    _, shapes = shapes_of(version)
    with pytest.raises(ConfigError) as caught:
        config_from_shapes(change(shapes))
    assert message in str(caught.value)


def test_an_unknown_version_has_no_module():
    with pytest.raises(ConfigError, match="unknown"):
        version_module("x060")
