"""Faults that one could make in joining pieces, planted: the inputs of the tests show every one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkv_train.ops import pieces
from rwkv_train.ops.pieces.algebra import DecayPiece, MatrixPiece, ScaledPiece
from tests.ops.native_cases import OPS, run
from tests.ops.pieces import split_runs
from tests.ops.pieces.piece_cases import errors, slow_case, with_resets, without_states
from tests.ops.pieces.split_runs import run_split

pytestmark = pytest.mark.usefixtures("one_thread")

CUTS = (13, 26, 39)
SEEN = 1e-6
EXACT = 1e-13
GRADIENTS_OF_TOKENS = {"wkv4": ("gk", "gv"), "wkv5": ("gk", "gv"), "wkv6": ("gw",), "wkv7": ("gw",)}

every_op = pytest.mark.parametrize("op", OPS)
heads_only = pytest.mark.parametrize("op", OPS[1:])


def errors_of(op: str, *resets: tuple[int, int], by_scan: bool = False) -> dict[str, float]:
    """Errors of four pieces against the whole, with whatever is planted."""
    case = slow_case(op, 2, 50, 2, 8)
    case = with_resets(case, *resets) if resets else case
    return errors(run_split(case, CUTS, by_scan=by_scan), run(case, "reference"))


def assert_gradients_only(op: str, found: dict[str, float]) -> None:
    """Fails unless outputs and final state are exact and gradients of tokens are not."""
    assert max(found["y"], *(found[name] for name in found if name.startswith("final"))) < EXACT
    # not a number is no gradient either
    assert all(not found[name] <= SEEN for name in GRADIENTS_OF_TOKENS[op])


@every_op
def test_nothing_planted_gives_nothing(op):
    assert max(errors_of(op).values()) < EXACT


@every_op
def test_states_that_pass_pieces_without_their_transition(op, monkeypatch):
    for kind, part in ((DecayPiece, "contribution"), (MatrixPiece, "contribution")):
        monkeypatch.setattr(kind, "carry", lambda self, state, part=part: getattr(self, part))
    monkeypatch.setattr(ScaledPiece, "carry", lambda self, state: self.sums)
    assert errors_of(op)["y"] > SEEN


@every_op
def test_borders_without_a_gradient(op, monkeypatch):
    # what is silently truncated backpropagation
    monkeypatch.setattr(split_runs, "from_adjoint", lambda adjoint, at: _zeros(adjoint))
    assert_gradients_only(op, errors_of(op))


@every_op
def test_gradients_of_the_next_piece_alone(op, monkeypatch):
    def forgetful(self, gradient):
        return self.with_tensors((*map(torch.zeros_like, self.tensors()[:-1]), gradient))

    for kind in (DecayPiece, MatrixPiece):
        monkeypatch.setattr(kind, "adjoint", forgetful)
    endless = float("inf")
    monkeypatch.setattr(
        ScaledPiece,
        "adjoint",
        lambda self, g: ScaledPiece(torch.full_like(self.span, endless), self.log_decay, g),
    )
    assert_gradients_only(op, errors_of(op))


def test_a_transition_that_is_not_transposed(monkeypatch):
    monkeypatch.setattr(
        MatrixPiece, "adjoint", lambda self, gradient: MatrixPiece(self.transition, gradient)
    )
    assert_gradients_only("wkv7", errors_of("wkv7"))


@every_op
def test_pieces_joined_in_the_wrong_order(op, monkeypatch):
    for kind in (ScaledPiece, DecayPiece, MatrixPiece):
        then = kind.then
        monkeypatch.setattr(kind, "then", lambda self, later, then=then: then(later, self))
    assert errors_of(op, by_scan=True)["y"] > SEEN


def test_a_transition_that_multiplies_from_the_left(monkeypatch):
    monkeypatch.setattr(
        MatrixPiece,
        "carry",
        lambda self, state: self.contribution + (0 if state is None else self.transition @ state),
    )
    assert errors_of("wkv7")["y"] > SEEN


@heads_only
def test_transitions_that_know_no_document_start(op, monkeypatch):
    monkeypatch.setattr(pieces, "_unless_closed", lambda transition, reset: transition)
    assert errors_of(op, (0, 20))["y"] > SEEN


def test_spans_that_know_no_document_start(monkeypatch):
    # wkv4's closed rows are those of endless span
    carry = ScaledPiece.carry
    monkeypatch.setattr(
        ScaledPiece,
        "carry",
        lambda self, state: carry(
            ScaledPiece(self.span.clamp(max=13), self.log_decay, self.sums), state
        ),
    )
    assert errors_of("wkv4", (0, 20))["y"] > SEEN


def test_wkv4s_gradients_in_the_units_of_the_wrong_scale(monkeypatch):
    monkeypatch.setattr(pieces, "to_adjoint", lambda gradient, at: (*gradient[:2], 0 * at[2]))
    assert_gradients_only("wkv4", errors_of("wkv4"))


def test_wkv4s_gradient_of_another_state(monkeypatch):
    function, names = split_runs.GRADIENTS["wkv4"]
    monkeypatch.setitem(
        split_runs.GRADIENTS,
        "wkv4",
        (lambda *given, **named: function(*given[:-1], None, **named), names),
    )
    assert_gradients_only("wkv4", errors_of("wkv4"))


def test_wkv4s_scale_of_no_sums(monkeypatch):
    """A scale of 0 that came with sums of nothing would push small exponents out."""
    case = slow_case("wkv4", 1, 50, 1, 4)
    nothing = {name: case.inputs[name] * 0 for name in ("aa", "bb", "pp")}
    case = case.with_inputs(**nothing, k=case.inputs["k"] - 1000)
    expected = run(case, "reference")
    assert errors(run_split(case, CUTS), expected)["y"] < EXACT
    monkeypatch.setattr("rwkv_train.ops.pieces.algebra.EMPTY", 0.0)
    assert not errors(run_split(case, CUTS), expected)["y"] < SEEN


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
def test_two_pieces_without_states_at_the_ends_need_no_transition_and_prove_none(op, monkeypatch):
    for kind in (DecayPiece, MatrixPiece):
        monkeypatch.setattr(
            kind,
            "tensors",
            lambda self: (torch.full_like(_transition(self), torch.nan), self.contribution),
        )
    case = without_states(slow_case(op, 2, 50, 2, 8))
    found = errors(run_split(case, (23,)), run(case, "reference"))
    assert max(found.values()) < EXACT


def _transition(piece: DecayPiece | MatrixPiece) -> Tensor:
    return piece.decay if isinstance(piece, DecayPiece) else piece.transition


def _zeros(state):
    return (
        torch.zeros_like(state)
        if isinstance(state, Tensor)
        else tuple(torch.zeros_like(part) for part in state)
    )
