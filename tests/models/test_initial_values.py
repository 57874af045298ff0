"""Initial values against the specification's numbers and vectors."""

from __future__ import annotations

import math

import pytest
import torch

from rwkv_train.models import rwkv6
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close, load_arrays
from tests.models.tiny import VERSIONS, random_tokens, tiny_config

# The reference's constructors compute in fp32.
CONSTRUCTOR_LIMIT = 1e-6


def fresh(version, *, seed=0, lr_init=6e-4, options=None, **sizes):
    """A model with the values of a new rwkv-init.pth."""
    model = build_model(tiny_config(version, **sizes), **(options or {}))
    initialize(model, seed=seed, lr_init=lr_init)
    return model


def values(model, key):
    return dict(model.named_parameters())[key].detach().double().flatten()


@pytest.mark.parametrize("version", ["4", "5"])
def test_time_parameters_start_at_the_values_of_the_vectors(version):
    model = fresh(version)
    expected = {
        key.removeprefix("init/"): torch.from_numpy(value)
        for key, value in load_arrays(f"rwkv{version}_tiny").items()
        if key.startswith("init/")
    }
    assert len(expected) > 12
    for key, value in expected.items():
        assert_close(key, values(model, key), value.double().flatten(), CONSTRUCTOR_LIMIT)


# Closed-form values of the specifications, section 6.1: L = 4, D = 64. channel -> value per layer.
CLOSED_FORM = {
    ("4", "att.time_decay", (0, 1, 2, 3, 63)): {
        0: (-5, -4.559899763, -4.285055056, -4.050409239, 3),
        1: (-5, -4.926913466, -4.839673729, -4.746151392, 3),
        3: (-5, -4.997984379, -4.991937516, -4.981859410, 3),
    },
    ("4", "att.time_mix_v", (0, 1, 32, 63)): {
        1: (0.1, 0.144194174, 0.694603558, 1.088258211),
        3: (0.3, 0.653553391, 1.140896415, 1.296070651),
    },
    ("4", "att.time_mix_r", (1, 32, 63)): {
        1: (0.210224104, 0.771105413, 0.994111770),
        3: (0.594603558, 0.917004043, 0.998033392),
    },
    ("4", "att.time_first", (0, 1, 2, 3)): {
        2: (-1.203972804, -0.703972804, -1.703972804, -1.203972804)
    },
    ("5", "att.time_decay", (0, 1, 2, 3, 63)): {
        0: (-6, -5.724937352, -5.553159410, -5.406505774, -1),
        3: (-6, -5.998740237, -5.994960947, -5.988662132, -1),
    },
    ("5", "att.time_faaaa", (0, 1, 2, 3, 63)): {
        1: (0.333333333, 0.428042328, 0.222751323, 0.317460317, 0),
        3: (1, 1.084126984, 0.868253968, 0.952380952, 0),
    },
    ("5", "att.ln_x.weight", (0, 63)): {
        0: (0.378929142, 0.378929142),
        1: (0.615572207, 0.615572207),
        3: (1, 1),
    },
    ("6", "att.time_decay", (0, 1, 2, 3, 63)): {
        0: (-6, -5.72493735, -5.55315941, -5.40650577, -1),
        2: (-6, -5.99241417, -5.97752929, -5.95758757, -1),
    },
    ("6", "att.time_faaaa", (0, 1, 2, 3)): {
        0: (0, 0.1, -0.1, 0),
        2: (0.66666667, 0.75608466, 0.54550265, 0.63492063),
    },
    ("6", "att.time_maa_x", (0, 1, 2, 3)): {2: (1, 0.875, 0.8232233, 0.78349365)},
    ("6", "att.time_maa_w", (0, 1, 2, 3)): {3: (1, 0.64644661, 0.57955179, 0.53469757)},
    ("6", "att.time_maa_k", (0, 1, 2, 3)): {1: (1, 0.95580583, 0.92567456, 0.89925907)},
    ("6", "att.time_maa_v", (0, 1, 2, 3)): {3: (0.7, 0.34644661, 0.27955179, 0.23469757)},
    ("6", "att.time_maa_r", (0, 1, 2, 3)): {1: (1, 0.7897759, 0.72737307, 0.68260288)},
    ("6", "att.time_maa_g", (0, 1, 2, 3)): {3: (1, 0.40539644, 0.35158022, 0.3178692)},
    ("6", "ffn.time_maa_k", (0, 1, 2, 3)): {3: (1, 0.06291618, 0.05271201, 0.04669152)},
    ("6", "ffn.time_maa_r", (0, 1, 2, 3)): {1: (1, 0.82701126, 0.76825261, 0.72501858)},
    ("6", "att.ln_x.weight", (0,)): {2: (0.81760377,)},
    ("7", "att.w0", (0, 1, 2, 3, 63)): {
        0: (-8, -7.74855127, -7.5021416, -7.26077098, 3),
        1: (-8, -7.83895117, -7.67668759, -7.51449916, 3),
        3: (-8, -7.84227765, -7.68657092, -7.53287982, 3),
    },
    ("7", "att.x_r", (0, 1, 2, 3)): {1: (1, 0.46411327, 0.40539644, 0.36811042)},
    ("7", "att.x_g", (0, 1, 2, 3)): {3: (1, 0.1877476, 0.15910358, 0.1418819)},
    ("7", "att.x_w", (0, 1, 2, 3)): {0: (1, 0.97631693, 0.95580583, 0.93634286)},
    ("7", "att.x_a", (0, 1, 2, 3)): {2: (1, 0.84610695, 0.7897759, 0.74769633)},
    ("7", "att.x_k", (0, 1, 2, 3)): {2: (1, 0.76674175, 0.70269822, 0.6573668)},
    ("7", "att.x_v", (0, 1, 2, 3)): {1: (1, 0.88734369, 0.83789506, 0.79944007)},
    ("7", "ffn.x_k", (0, 1, 2, 3)): {3: (1, 0.01611439, 0.0134468, 0.01188302)},
    ("7", "att.a0", (0, 1, 2, 3, 63)): {2: (-0.69, -0.66490552, -0.64041572, -0.61653061, 0.31)},
    ("7", "att.v0", (0, 1, 2, 3)): {0: (0.93, 0.92365079, 0.91730159, 0.91095238)},
    ("7", "att.k_k", (0, 1, 2, 3)): {1: (0.76, 0.7584127, 0.7568254, 0.7552381)},
    ("7", "att.k_a", (0, 63)): {3: (1.02, 1.02)},
    ("7", "att.r_k", (0, 63)): {3: (-0.04, -0.04)},
    ("7", "att.ln_x.weight", (0, 63)): {0: (0.37892914, 0.37892914)},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_vectors_start_at_the_closed_form_values(version):
    heads = {} if version == "4" else {"head_size": 64}
    model = fresh(version, n_layer=4, **heads)
    checked = 0
    for (which, key, channels), layers in CLOSED_FORM.items():
        if which != version:
            continue
        for layer, expected in layers.items():
            got = values(model, f"blocks.{layer}.{key}")[list(channels)]
            error = (got - torch.tensor(expected, dtype=torch.float64)).abs().max()
            assert error < 5e-7, f"layer {layer} {key}: {got.tolist()}, expected {expected}"
            checked += 1
    assert checked >= 7


def test_rwkv7_ramps_repeat_in_every_head():
    # Two heads of 32: the in-head ramp takes the same values, the ramp over all channels continues.
    a0 = values(fresh("7"), "blocks.0.att.a0")
    step = 0.4 * 32 / 63
    assert_close("a0", a0[32:], a0[:32] + step, CONSTRUCTOR_LIMIT)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_layer_counts_as_the_first(version):
    alone = fresh(version, n_layer=1)
    for name, parameter in alone.named_parameters():
        assert parameter.isfinite().all(), name
    decay = {
        "4": ("time_decay", -5.0),
        "5": ("time_decay", -6.0),
        "6": ("time_decay", -6.0),
        "7": ("w0", -8.0),
    }[version]
    assert values(alone, f"blocks.0.att.{decay[0]}")[0] == decay[1]


def gain(weight):
    """The g of a matrix with W^T W = g^2 I (or W W^T), and how far it is from one."""
    w = weight.detach().double()
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    g = gram.diagonal().mean().sqrt()
    return g.item(), (gram / g**2 - torch.eye(len(gram))).abs().max().item()


GAINS = {
    "4": {"blocks.1.att.value.weight": 1.0, "blocks.1.ffn.key.weight": 2.0},
    "5": {
        "blocks.1.att.receptance.weight": 1.0,
        "blocks.1.att.key.weight": 0.1,
        "blocks.1.att.value.weight": 1.0,
        "blocks.1.att.gate.weight": 0.1,
        "blocks.1.ffn.key.weight": 1.0,
    },
    "6": {
        "blocks.1.att.receptance.weight": 1.0,
        "blocks.1.att.key.weight": 0.1,
        "blocks.1.att.value.weight": 1.0,
        "blocks.1.att.gate.weight": 0.1,
        "blocks.1.ffn.key.weight": 1.0,
    },
    "7": {
        "blocks.1.att.receptance.weight": 1.0,
        "blocks.1.att.key.weight": 0.1,
        "blocks.1.att.value.weight": 1.0,
        "blocks.1.ffn.key.weight": 1.0,
        "blocks.1.att.w2": 0.1,
        "blocks.1.att.a2": 0.1,
        "blocks.1.att.v2": 0.1,
        "blocks.1.att.g2": 0.1,
    },
}
ZEROS = {
    "4": "att.key.weight att.receptance.weight att.output.weight ffn.receptance.weight "
    "ffn.value.weight",
    "5": "att.output.weight ffn.receptance.weight ffn.value.weight att.ln_x.bias",
    "6": "att.output.weight ffn.receptance.weight ffn.value.weight att.ln_x.bias "
    "att.time_maa_w1 att.time_decay_w1",
    "7": "att.output.weight ffn.value.weight att.ln_x.bias att.w1 att.a1 att.v1 att.g1",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("vocab", "head_gain"), [(200, 0.5 * math.sqrt(200 / 64)), (40, 0.5)])
def test_matrices_are_orthogonal_with_the_specified_gain_or_zero(version, vocab, head_gain):
    model = fresh(version, vocab_size=vocab)
    weights = dict(model.named_parameters())
    for key, expected in {**GAINS[version], "head.weight": head_gain}.items():
        g, residue = gain(weights[key])
        assert abs(g - expected) < 1e-5 * expected, key
        assert residue < 2e-6, key
    for key in ZEROS[version].split():
        assert not weights[f"blocks.1.{key}"].any(), key
    for key in ("ln_out.weight", "blocks.0.ln0.weight", "blocks.1.ln2.weight"):
        assert (weights[key] == 1).all()


def test_rwkv4_gains_grow_with_tall_matrices():
    model = fresh("4", dim_att=128, head_qk=256)
    assert gain(model.blocks[0].att.value.weight)[0] == pytest.approx(2**0.5, rel=1e-5)
    assert gain(model.head_k.weight)[0] == pytest.approx(0.1 * 2, rel=1e-5)
    assert not model.head_q.weight.any()
    assert gain(fresh("5", head_qk=256).head_k.weight)[0] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(("version", "limit"), [("4", 6e-4), ("5", 1e-4), ("6", 1e-4), ("7", 1e-4)])
def test_the_embedding_fills_its_range(version, limit):
    embedding = fresh(version, vocab_size=500, lr_init=6e-4).emb.weight
    assert 0.99 * limit < embedding.abs().max() <= limit
    assert abs(embedding.double().std().item() / (limit / 3**0.5) - 1) < 0.02


@pytest.mark.parametrize("key", ["att.time_maa_w2", "att.time_decay_w2"])
def test_rwkv6_low_rank_factors_are_uniform(key):
    values_ = values(fresh("6"), f"blocks.1.{key}")
    assert 0.0095 < values_.abs().max() <= 0.01
    assert abs(values_.std().item() / (0.01 / 3**0.5) - 1) < 0.05


@pytest.mark.parametrize(
    ("version", "v2"), [("4", None), ("5", 0.97086), ("6", 0.97086), ("7", 0.97086)]
)
def test_the_initial_loss_is_the_expected_one(version, v2):
    # Specification 6.4: every block is the identity, the logits have the variance v2 / 4.
    V, D = 2000, 128
    if v2 is None:
        q = 6e-4**2 / 3
        v1 = q / (q + 1e-5)
        v2 = v1 / (v1 + 1e-5)
    model = fresh(version, vocab_size=V, n_embd=D)
    tokens, targets = random_tokens(4, 64, vocab_size=V), random_tokens(4, 64, vocab_size=V, seed=2)
    logits, _ = model(tokens)
    assert logits.double().var().item() == pytest.approx(v2 / 4, rel=0.02)
    assert model.loss(tokens, Targets(targets)).item() == pytest.approx(
        math.log(V) + v2 / 8, abs=0.1
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_initial_values_depend_on_seed_and_name_alone(version):
    first = fresh(version).state_dict()
    torch.rand(100)
    second = fresh(version, options=None if version == "4" else {"train_states": True})
    second = second.state_dict()
    other_seed = fresh(version, seed=1).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(first["emb.weight"], other_seed["emb.weight"])
    assert not torch.equal(first["head.weight"], other_seed["head.weight"])
    a, b = first["blocks.0.att.value.weight"], first["blocks.1.att.value.weight"]
    assert not torch.equal(a, b)


def test_initial_values_follow_the_models_dtype():
    model = build_model(tiny_config("6")).bfloat16()
    initialize(model, seed=0, lr_init=1e-4)
    expected = fresh("6").bfloat16().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_trained_states_start_at_zero():
    model = fresh("7", options={"train_states": True})
    assert not any(block.att.time_state.any() for block in model.blocks)


def test_a_parameter_that_two_rows_know_is_noticed(monkeypatch):
    monkeypatch.setattr(rwkv6, "PARAMETERS", (*rwkv6.PARAMETERS, rwkv6.PARAMETERS[0]))
    with pytest.raises(AssertionError, match="weight matches 2 rows"):
        initialize(build_model(tiny_config("6")), seed=0, lr_init=1e-4)
