"""A fault of the trainer is found, and named: the first one that its run shows is the cause."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rwkv_train.models import parameters, rwkv7
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.recorded_step import RecordedStep
from rwkv_train.models.table import Rate, constant
from rwkv_train.ops.head_loss import native as loss_native
from rwkv_train.ops.head_loss import reference as loss_reference
from rwkv_train.training import step_callback
from rwkv_train.training.optim import optimizer, schedule
from rwkv_train.verification import check_run as module
from rwkv_train.verification.check_model import check_model_ways
from rwkv_train.verification.check_run import check_bits, check_run, platform_key
from rwkv_train.verification.golden_file import golden
from rwkv_train.verification.golden_run import GoldenRun, run_golden
from rwkv_train.verification.outcomes import Part, worst_of

pytestmark = pytest.mark.usefixtures("one_thread")


def run_of(version: str) -> Part:
    return check_run(version, golden()["runs"][version])


def wrong(part: Part) -> list[str]:
    """The results that are wrong, in the order of the verification."""
    return [finding.result for finding in part.findings if not finding.is_right]


def with_row(monkeypatch, pattern: str, **changed: object) -> None:
    """Changes a row of RWKV-7's table of parameters."""
    table = [
        dataclasses.replace(row, **changed) if row.pattern == pattern else row
        for row in rwkv7.PARAMETERS
    ]
    assert tuple(table) != tuple(rwkv7.PARAMETERS)
    monkeypatch.setattr(rwkv7, "PARAMETERS", tuple(table))


@pytest.fixture(scope="module")
def right_run() -> GoldenRun:
    """A run of RWKV-4 without a fault."""
    return run_golden("4")


@pytest.fixture
def instead(right_run: GoldenRun, monkeypatch: pytest.MonkeyPatch) -> GoldenRun:
    """Lets runs of this version be that one, where what is wrong needs no step to show."""
    monkeypatch.setattr(module, "run_golden", lambda *_, **__: right_run)
    return right_run


def is_right(part: Part) -> bool:
    """Tells whether nothing is wrong, and half of every bound is free."""
    return wrong(part) == [] and worst_of(part.findings).used <= 0.5


def test_a_run_without_a_fault_is_right_and_leaves_half_of_its_bounds_free(instead):
    part = run_of("4")
    assert is_right(part) and part.tokens_per_second > 0


def test_so_does_one_of_the_newest_version():
    assert is_right(run_of("7"))


def test_an_initial_value(monkeypatch):
    with_row(monkeypatch, "blocks.*.att.k_k", init=constant(0.86))
    found = wrong(run_of("7"))
    assert found[:2] == [f"initial value of blocks.{layer}.att.k_k" for layer in (0, 1)]
    # nothing else is blamed before the run has made a step
    assert found[2] == "loss"


def test_the_rate_of_one_group(monkeypatch):
    monkeypatch.setitem(parameters._FACTORS, Rate.TWO, 1.0)
    part = run_of("7")
    first = next(finding for finding in part.findings if not finding.is_right)
    assert first.result == "groups: rate factor" and first.fault == "wrong of blocks.*.att.w0"
    assert "learnt: blocks.0.att.w0" in wrong(part)


def test_weight_decay_on_a_vector(monkeypatch):
    with_row(monkeypatch, "blocks.*.att.k_a", decayed=True)
    part = run_of("7")
    first = next(finding for finding in part.findings if not finding.is_right)
    assert first.result == "groups: weight decay" and first.fault == "wrong of blocks.*.att.k_a"
    assert "learnt: blocks.1.att.k_a" in wrong(part)


def test_betas_that_are_swapped(instead, monkeypatch):
    build = optimizer._adamw

    def swapped(groups, options, *others):
        return build(groups, options | {"betas": options["betas"][::-1]}, *others)

    monkeypatch.setattr(optimizer, "_adamw", swapped)
    assert wrong(run_of("4")) == ["optimizer: beta1", "optimizer: beta2"]


def test_a_schedule_that_is_a_step_ahead(monkeypatch):
    def ahead(s, step, ramp):
        return schedule.learning_rate(s, step + 1, ramp + 1)

    monkeypatch.setattr(step_callback, "learning_rate", ahead)
    found = wrong(run_of("4"))
    assert found[:8] == ["lr"] * 8 and "loss" in found


def test_a_loss_without_its_wrap_moves_the_curve(monkeypatch):
    # by the reference: what the kernel lacks is found in test_planted_operators
    monkeypatch.setattr(loss_reference, "L2WRAP", 0.0)
    monkeypatch.setattr(loss_native, "refuses", lambda call: "it is left out here")
    found = wrong(run_of("4"))
    assert found[0] in ("loss", "grad_norm") and any(n.startswith("learnt") for n in found)


def test_a_single_bit(instead):
    stored = golden()["runs"]["4"] | {"bits": {platform_key(): module.bits_of(instead)}}
    assert wrong(check_bits("4", stored)) == []
    weight = instead.last["head.weight"].clone()
    weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 1])
    changed = instead._replace(last={**instead.last, "head.weight": weight})
    stored["bits"] = {platform_key(): module.bits_of(changed)}
    assert wrong(check_bits("4", stored)) == ["losses and weights"]


def test_bits_of_another_machine_are_not_compared_and_that_is_said(instead):
    part = check_bits("4", golden()["runs"]["4"] | {"bits": {"another torch": "0"}})
    assert part.findings == () and "bits-4: not compared" in part.notes[0]


def test_without_a_fault_every_way_through_a_model_gives_the_same():
    for version in ("4", "5", "6", "7"):
        part = check_model_ways(version)
        assert is_right(part)


def wrong_cases(version: str) -> set[str]:
    """The ways that give other numbers, without their places."""
    part = check_model_ways(version)
    return {finding.case.partition(",")[0] for finding in part.findings if not finding.is_right}


def test_documents_whose_start_the_model_does_not_see(monkeypatch):
    read = RWKV._read

    def forgets(self, tokens, state, reset, with_state, ranks=None):
        return read(self, tokens, state, None, with_state, ranks)

    monkeypatch.setattr(RWKV, "_read", forgets)
    assert wrong_cases("7") == {"documents packed"}


def test_a_token_shift_that_takes_another_token_across_a_border(monkeypatch):
    read = RWKV._read

    def forgets(self, tokens, state, reset, with_state, ranks=None):
        x, after = read(self, tokens, state, reset, with_state, ranks)
        if after is not None:
            after = tuple(layer._replace(ffn_shift=layer.att_shift) for layer in after)
        return x, after

    monkeypatch.setattr(RWKV, "_read", forgets)
    # The state that decoding begins with is the model's.
    assert wrong_cases("6") == {"rows read in chunks of 16", "token by token", "decoded"}


def test_a_decoding_step_that_forgets_the_last_token(monkeypatch):
    features = RecordedStep.features

    def forgets(self, tokens, state):
        x, after = features(self, tokens, state)
        return x, tuple(a._replace(att_shift=b.att_shift) for a, b in zip(after, state))

    monkeypatch.setattr(RecordedStep, "features", forgets)
    assert wrong_cases("7") == {"decoded"}
