"""A larger model made of a smaller one: the same function, and copies that do not stay copies."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.models.transfer import donors, enlarge, shares, stretched_curve
from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import VERSIONS, random_tokens, tiny_config, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)
# Curves: the only tensors that do not take their donors' values as they are.
CURVES = ("time_decay", "time_first", "time_faaaa", "w0", "a0", "v0")


def enlarged(version, donor, **sizes):
    model = build_model(tiny_config(version, **sizes))
    initialize(model, seed=0, lr_init=1e-4)
    return model.eval(), enlarge(model, donor)


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@every_version
def test_twice_the_width_computes_the_same_when_the_curves_are_flat(version):
    small = tiny_model(version)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith(CURVES):
                parameter.fill_(parameter.mean())
    model, _ = enlarged(version, small.state_dict(), n_embd=128)
    tokens = random_tokens(2, 20)
    assert distance(model(tokens)[0], small(tokens)[0]) < 1e-5


@every_version
def test_more_layers_and_an_uneven_width_stay_near_the_small_model(version):
    small = tiny_model(version)
    tokens = random_tokens(4, 30)
    expected = small.loss(tokens[:, :-1], Targets(tokens[:, 1:]))
    model, report = enlarged(version, small.state_dict(), n_embd=96, n_layer=5)
    # The noise in the tiny model's weights makes it worse than guessing (log 50); a model that is
    # not made of it would not know that.
    assert model.loss(tokens[:, :-1], Targets(tokens[:, 1:])).item() == pytest.approx(
        expected.item(), abs=0.15
    )
    assert report.startswith("2 layers of width 64 became 5 of width 96")
    assert distance(model(tokens)[0], small(tokens)[0]) < 0.5


@every_version
def test_copies_of_a_channel_part_in_the_first_step(version):
    small = tiny_model(version)
    model, _ = enlarged(version, small.state_dict(), n_embd=128)
    tokens = random_tokens(2, 20)
    model.train().loss(tokens[:, :-1], Targets(tokens[:, 1:])).backward()
    rows = model.blocks[1].att.key.weight
    # Heads of 32 rows: the second is a copy of the first. RWKV-4: so is every second row.
    one, other = (
        (slice(0, 64, 2), slice(1, 64, 2)) if version == "4" else (slice(32), slice(32, 64))
    )
    assert torch.equal(rows[one], rows[other])
    assert not torch.allclose(rows.grad[one], rows.grad[other], rtol=0.05)


def test_places_are_given_out_evenly_and_heads_stay_whole():
    assert donors(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert donors(2, 3).tolist() == [0, 0, 1]
    assert donors(4, 8, 2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_the_shares_of_one_donor_add_up_to_one():
    donor = donors(3, 7)
    found = shares(donor, torch.Generator().manual_seed(0))
    assert torch.zeros(3).index_add_(0, donor, found) == pytest.approx(torch.ones(3))
    assert found.min() > 0 and len(set(found.tolist())) == 7


def test_a_curve_is_sorted_smoothed_and_stretched_in_the_donors_order():
    values = torch.tensor([4.0, 0.0, 8.0])
    # sorted 0 4 8, its smoothed form the same; stretched to 5 places: 0 2 4 6 8
    found = stretched_curve(values, torch.tensor([0, 0, 1, 2, 2]))
    assert found.tolist() == [2.0, 4.0, 0.0, 6.0, 8.0]
    # sorted 0 0 4 4 -> smoothed 0 1 3 4
    assert stretched_curve(torch.tensor([0.0, 4.0, 0.0, 4.0]), torch.arange(4)).tolist() == [
        0.0,
        3.0,
        1.0,
        4.0,
    ]


def test_a_copied_layer_takes_smaller_steps():
    small = tiny_model("6")
    model, _ = enlarged("6", small.state_dict(), n_layer=4)
    for layer, block in enumerate(model.blocks):
        donor = small.blocks[layer // 2]
        assert torch.equal(block.att.output.weight, donor.att.output.weight / 2)
        assert torch.equal(block.ffn.value.weight, donor.ffn.value.weight / 2)
        assert torch.equal(block.att.key.weight, donor.att.key.weight)


def test_a_larger_vocabulary_keeps_the_rows_it_has():
    small = tiny_model("7")
    model, report = enlarged("7", small.state_dict(), n_layer=3, vocab_size=60)
    assert torch.equal(model.emb.weight[:50], small.emb.weight)
    assert torch.equal(model.head.weight[:50], small.head.weight)
    assert "10 rows of the vocabulary are new" in report
    tokens = random_tokens(1, 8)
    again, _ = enlarged("7", small.state_dict(), n_layer=3)
    assert torch.allclose(model(tokens)[0][..., :50], again(tokens)[0])


@pytest.mark.parametrize(
    ("version", "ranks"),
    [
        ("6", {"rank_mix": 48, "rank_decay": 96}),
        ("7", {"rank_decay": 64, "rank_iclr": 64, "rank_value": 64, "rank_gate": 64}),
    ],
)
def test_further_ranks_contribute_nothing_at_first(version, ranks):
    small = tiny_model(version)
    model, _ = enlarged(version, small.state_dict(), n_layer=2, n_embd=64, **ranks)
    tokens = random_tokens(2, 12)
    assert distance(model(tokens)[0], small(tokens)[0]) < 1e-6


def test_a_model_is_made_larger_only():
    small = tiny_model("6", n_layer=3)
    with pytest.raises(ConfigError, match="--n_layer 2 is less than the 3"):
        enlarged("6", small.state_dict(), n_layer=2)
    with pytest.raises(ConfigError, match="rank"):
        enlarged("6", tiny_model("6", rank_decay=96).state_dict(), n_layer=4)


def test_trained_states_and_incomplete_models_are_refused():
    tuned = tiny_model("6", options={"train_states": True})
    with pytest.raises(CheckpointError, match="time_state"):
        enlarged("6", tuned.state_dict(), n_layer=4)
    weights = dict(tiny_model("6").state_dict())
    del weights["blocks.1.att.gate.weight"]
    with pytest.raises(CheckpointError, match=r"lacks blocks\.1\.att\.gate\.weight"):
        enlarged("6", weights, n_layer=4)
