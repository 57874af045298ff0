"""Low-rank adapters: what they compute, what learns, which matrices get one."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.config.schema import AdapterConfig
from rwkv_train.errors import ConfigError
from rwkv_train.models.adapters import attach_adapters, largest_directions, learns, matrix_names
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.ops.head_loss import Targets
from rwkv_train.training.optim.freeze import freeze_all_but
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)
KINDS = {
    "lora": {},
    "pissa": {"lora_init": "pissa"},
    "dora": {"lora_dora": True},
    "pissa-dora": {"lora_init": "pissa", "lora_dora": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def adapted(version, *, values=None, targets=(), options=None, **config):
    model = tiny_model(version, options=options)
    attach_adapters(model, AdapterConfig(lora_r=4, **config), targets, seed=3, values=values)
    return model


def trained(model):
    """Adds noise to whatever of the adapters learns."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if learns(name, "lora"):
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
    return model


@every_version
@every_kind
def test_adapters_change_nothing_at_the_start(version, kind):
    tokens = random_tokens(2, 9)
    expected = tiny_model(version)(tokens)[0]
    assert_close("logits", adapted(version, **KINDS[kind])(tokens)[0], expected, 1e-5)


@every_kind
def test_an_adapted_matrix_is_the_sum_of_the_papers(kind):
    model = trained(adapted("6", lora_alpha=6.0, **KINDS[kind])).double()
    module = model.blocks[1].ffn.value
    x = torch.randn(3, 2, module.in_features).double()
    matrix = module.weight + 6 / 4 * module.lora_B @ module.lora_A
    if "pissa" in kind:
        matrix = matrix - 6 / 4 * module.lora_B0 @ module.lora_A0
    if "dora" in kind:
        matrix = module.lora_magnitude[:, None] * matrix / matrix.norm(dim=1, keepdim=True)
    assert_close("y", module(x), x @ matrix.T, 1e-12)
    assert (matrix - module.weight).abs().max() > 0.01


def test_pissa_starts_as_the_largest_singular_directions():
    module = adapted("6", lora_init="pissa").blocks[0].att.key
    u, s, v = torch.linalg.svd(module.weight)
    expected = (u[:, :4] * s[:4]) @ v[:4]
    product = module.scale * module.lora_B @ module.lora_A
    assert_close("product", product, expected, 1e-2)


def test_the_largest_directions_are_nearly_the_best_approximation():
    generator = torch.Generator().manual_seed(0)
    # singular values 2^0 … 2^-23 in random directions
    left = torch.linalg.qr(torch.randn(60, 24, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(40, 24, generator=generator)).Q
    matrix = left * 2.0 ** -torch.arange(24) @ right.T
    up, down = largest_directions(matrix, 5, generator)
    assert up.shape == (60, 5) and down.shape == (5, 40)
    best = torch.linalg.svdvals(matrix)[5:].norm()
    assert (matrix - up @ down).norm() < 1.001 * best


@every_version
@every_kind
def test_only_what_is_trained_gets_a_gradient(version, kind):
    model = adapted(version, **KINDS[kind]).train()
    groups = parameter_groups(model, weight_decay=0.1, train_type="lora", fully=("ln",))
    freeze_all_but(model, groups)
    tokens = random_tokens(2, 12)
    model.loss(tokens[:, :-1], Targets(tokens[:, 1:])).backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == {name for group in groups for name in group.names}
    ends = {"lora_A", "lora_B"} | ({"lora_magnitude"} if "dora" in kind else set())
    assert {n.rpartition(".")[2] for n in found if "lora" in n} == ends
    assert {n for n in found if "lora" not in n} == {
        n for n, _ in model.named_parameters() if ".ln" in n or n.startswith("ln_out")
    }
    decayed = {n.rpartition(".")[2] for g in groups if g.weight_decay for n in g.names}
    assert decayed == {"lora_A", "lora_B"}


@every_version
def test_gradients_are_the_same_when_blocks_are_recomputed(version):
    gradients = []
    for recompute in (False, True):
        model = trained(adapted(version, lora_init="pissa", options={"grad_cp": recompute})).train()
        freeze_all_but(model, parameter_groups(model, weight_decay=0, train_type="lora"))
        tokens = random_tokens(2, 12)
        model.loss(tokens[:, :-1], Targets(tokens[:, 1:])).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), name


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("4", "att.key att.value att.receptance att.output ffn.key ffn.receptance ffn.value"),
        (
            "5",
            "att.receptance att.key att.value att.output att.gate ffn.key ffn.receptance ffn.value",
        ),
        (
            "6",
            "att.receptance att.key att.value att.output att.gate ffn.key ffn.receptance ffn.value",
        ),
        ("7", "att.receptance att.key att.value att.output ffn.key ffn.value"),
    ],
)
def test_all_large_matrices_of_the_blocks_are_adapted_unless_named(version, expected):
    assert matrix_names(tiny_model(version)) == expected.split()
    names = {
        n.removesuffix(".lora_A")
        for n, _ in adapted(version).named_parameters()
        if n.endswith("lora_A")
    }
    assert names == {f"blocks.{i}.{name}" for i in range(2) for name in expected.split()}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("att.key",), {"att.key"}),
        (("key",), {"att.key", "ffn.key"}),
        (("ffn", "att.output"), {"ffn.key", "ffn.value", "att.output"}),
    ],
)
def test_targets_name_a_matrix_a_kind_or_a_half(targets, expected):
    found = {
        n.split(".", 2)[2].removesuffix(".lora_A")
        for n, _ in adapted("7", targets=targets).named_parameters()
        if n.endswith("lora_A")
    }
    assert found == expected


def test_a_target_that_no_matrix_has_is_refused():
    with pytest.raises(ConfigError, match=r"no matrix q_proj; expected some of att\.receptance"):
        adapted("7", targets=("key", "q_proj"))


def test_a_rank_that_saves_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"--lora_r 65 is more than att\..* \(64\)"):
        attach_adapters(tiny_model("7"), AdapterConfig(lora_r=65), (), seed=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.0.att.time_maa_w1", "time"),
        ("blocks.1.ffn.x_k", "time"),
        ("blocks.0.att.w0", "time"),
        ("blocks.0.ln1.weight", "ln"),
        ("ln_out.bias", "ln"),
        ("blocks.0.att.ln_x.bias", "ln"),
        ("emb.weight", "emb"),
        ("head.weight", "head"),
        ("blocks.0.att.key.weight", ""),
        ("blocks.0.att.key.lora_A0", ""),
    ],
)
def test_every_parameter_belongs_to_one_word_at_most(name, words):
    assert [w for w in ("time", "ln", "emb", "head") if learns(name, "lora", (w,))] == words.split()


def test_dropout_acts_in_training_only():
    model = trained(adapted("6", lora_dropout=0.5))
    tokens = random_tokens(1, 5)
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


def test_a_run_goes_on_with_the_values_it_had():
    model = trained(adapted("6", lora_init="pissa", lora_dora=True))
    values = dict(model.state_dict())
    again = adapted("6", lora_init="pissa", lora_dora=True, values=values)
    assert all(torch.equal(value, values[name]) for name, value in again.state_dict().items())
