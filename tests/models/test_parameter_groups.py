"""Optimizer groups against the groups that RWKV-LM's own code made."""

from __future__ import annotations

import re

import pytest
import torch

from rwkv_train.errors import ConfigError
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.models.registry import build_model
from tests.helpers import load_json
from tests.models.tiny import VERSIONS, tiny_config

# One row per run of the reference; the v4neo folder builds RWKV-5 too, with the same groups.
ROWS = load_json("param_groups")["rows"]
ROW_VERSION = {"": "4", "r2r3r4": "5", "x052": "5", "x060": "6", "x070": "7"}


@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=[
        f"{row['generation']}-{row['my_testing'] or 'rwkv4'}-wd{row['weight_decay']:g}-stage"
        f"{row['stage']}-lw{row['layerwise_lr']}{row['train_type']}"
        for row in ROWS
    ],
)
def test_optimizer_groups_are_those_of_the_reference(row):
    states = row["train_type"] == "states"
    model = build_model(tiny_config(ROW_VERSION[row["my_testing"]], n_layer=3), train_states=states)
    groups = parameter_groups(
        model,
        weight_decay=row["weight_decay"],
        layerwise_lr=bool(row["layerwise_lr"]),
        special_lr_factor=5 if row["stage"] == 2 else None,
        train_type=row["train_type"] or "all",
    )
    got = [
        (g.lr_factor, g.weight_decay, {re.sub(r"\.\d+\.", ".*.", name) for name in g.names})
        for g in groups
    ]
    expected = [
        (g["lr_factor"], g["weight_decay"], set(g["tensors"]))
        for g in row["groups"]
        if g["tensors"]
    ]
    assert got == expected
    grouped = {name for group in groups for name in group.names}
    rest = {name for name, p in model.named_parameters() if p.requires_grad} - grouped
    assert {re.sub(r"\.\d+\.", ".*.", name) for name in rest} == set(row["not_trained"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stage2", [False, True])
def test_every_parameter_is_in_exactly_one_group(version, stage2):
    model = build_model(tiny_config(version))
    groups = parameter_groups(model, weight_decay=0.1, special_lr_factor=5 if stage2 else None)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    by_name = dict(model.named_parameters())
    for group in groups:
        assert all(by_name[n] is p for n, p in zip(group.names, group.parameters, strict=True))


def test_parameters_without_gradient_are_in_no_group():
    model = build_model(tiny_config("6"))
    model.emb.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1)
    assert "emb.weight" not in {name for group in groups for name in group.names}


def test_a_parameter_that_no_row_knows_is_noticed():
    model = build_model(tiny_config("6"))
    model.blocks[0].att.register_parameter("stranger", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(AssertionError, match="stranger matches 0 rows"):
        parameter_groups(model, weight_decay=0.0)


def test_training_states_needs_states():
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(build_model(tiny_config("6")), weight_decay=0.0, train_type="states")
