"""Every operator is verified, by every backend, and right ones leave half of the bound free."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from rwkv_train import ops
from rwkv_train.verification.check_operators import STORED, check_operator
from rwkv_train.verification.golden_file import golden
from rwkv_train.verification.item_names import OPERATORS
from rwkv_train.verification.operators.problem_table import PROBLEMS
from rwkv_train.verification.outcomes import worst_of

ROOM = Path(ops.__file__).parent
QUICK = {"fp32", "bf16"}


def test_every_operator_that_has_backends_is_verified():
    folders = {path.parent.name for path in ROOM.glob("*/reference.py")}
    missing = folders - set(PROBLEMS)
    assert not missing, f"write their calls in verification/operators: {sorted(missing)}"
    assert tuple(PROBLEMS) == OPERATORS and set(PROBLEMS) == folders
    assert set(golden()["operators"]) == folders


def test_an_operator_with_gradients_has_one_of_every_input_that_a_problem_gives():
    without = {"adamw", "matvec", "pieces"}
    for op, problems in PROBLEMS.items():
        first = next(problems())
        assert bool(first.gradients) == (op not in without)
        names = set(golden()["operators"][op])
        if op not in without:
            assert {f"g{name}" for name in first.inputs} <= names, op
        if op.startswith("wkv"):
            assert any(name.startswith("final state") for name in names)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_right_operator_leaves_half_of_the_bound_free(op: str, one_thread: None):
    part = check_operator(op, torch.device("cpu"), golden()["operators"][op], quick=True)
    worst = worst_of(part.findings)
    assert worst.is_right and worst.used <= 0.5, worst
    backends = {b.name for b in importlib.import_module(f"rwkv_train.ops.{op}").BACKENDS}
    reached = {f.backend for f in part.findings} | {n.backend for n in part.not_run}
    assert reached == {name for name in backends if ":" not in name} | {STORED}
    for backend in reached - {STORED} - {n.backend for n in part.not_run}:
        types = {f.dtype for f in part.findings if f.backend == backend}
        assert types == QUICK or (op in ("value_residual", "norm_shift") and types == {"fp32"})


def test_all_of_a_small_operator_is_right_in_every_type(one_thread: None):
    for op in ("keys", "adamw", "head_loss"):
        part = check_operator(op, torch.device("cpu"), golden()["operators"][op])
        assert {"fp64", "fp32", "bf16", "fp16"} == {f.dtype for f in part.findings}
        assert worst_of(part.findings).used <= 0.5, worst_of(part.findings)


def test_a_backend_that_cannot_be_used_is_said_with_its_reason(monkeypatch, one_thread: None):
    native = importlib.import_module("rwkv_train.ops.keys.native")
    monkeypatch.setattr(native, "refuses", lambda call: "there is no compiler")
    part = check_operator("keys", torch.device("cpu"), golden()["operators"]["keys"], quick=True)
    assert [tuple(missing) for missing in part.not_run] == [
        ("keys", "native", "there is no compiler")
    ]
    assert all(finding.is_right for finding in part.findings)
