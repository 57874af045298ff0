"""What is easily done wrong when ranks share a row: every trap a test, most with the fault planted.

A fault that is planted shows that the inputs here would give it away: with fast decays, initial
weights or two ranks many of them change nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rwkv_train.models import piece_exchange, spread_state
from rwkv_train.models.piece_exchange import gradient_of
from rwkv_train.ops.pieces.algebra import MatrixPiece, fold
from rwkv_train.ops.pieces.message import piece_numbers, state_numbers, unpack_piece
from tests.models.spread_rows import CUTS, EXACT, T, rows, spread_model
from tests.models.thread_ranks import columns_of, error, learn_alone, learn_together, pieces
from tests.models.tiny import VERSIONS

every_version = pytest.mark.parametrize("version", VERSIONS)
THREE, FOUR = pieces(*CUTS[3]), pieces(*CUTS[4])
# Far above rounding, far below what the faults make of the gradients.
SEEN = 1e-6


def errors(version: str, columns: list[torch.Tensor]) -> tuple[float, float]:
    """The errors of the loss and of the gradients, relative to one process."""
    model, row = spread_model(version), rows()
    expected = learn_alone(model, row)
    found = learn_together(model, row, columns)
    return abs(float(found.loss / expected.loss - 1)), error(found, expected)


@every_version
def test_1_gradients_end_at_borders_without_what_attaches_the_state(
    version: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spread_state, "gradient_of", lambda final, _: gradient_of(final, None))
    of_loss, of_gradients = errors(version, THREE)
    # The loss is right, so that only gradients tell.
    assert of_loss < EXACT and of_gradients > 1e-3


@every_version
def test_1_pieces_are_outside_of_the_graph(version: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    cross = spread_state.cross

    def looks(ranks: Any, own: Any, *rest: Any) -> Any:
        seen.append(any(tensor.requires_grad for tensor in own.tensors()))
        return cross(ranks, own, *rest)

    monkeypatch.setattr(spread_state, "cross", looks)
    errors(version, THREE)
    assert seen and not any(seen)


@every_version
def test_2_a_lost_transition_shows_with_three_ranks_and_not_with_two(
    version: str, monkeypatch: pytest.MonkeyPatch
):
    def without(message: torch.Tensor, like: Any) -> Any:
        transition, *rest = unpack_piece(message, like).tensors()
        lost = torch.full_like(transition, torch.inf if version == "4" else 0.0)
        return like.with_tensors((lost, *rest))

    monkeypatch.setattr(piece_exchange, "unpack_piece", without)
    assert errors(version, pieces(*CUTS[2]))[1] < EXACT
    of_loss, of_gradients = errors(version, THREE)
    assert of_loss > 1e-9 and of_gradients > SEEN


def test_3_and_4_a_transition_that_is_not_transposed_shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MatrixPiece, "adjoint", lambda p, g: MatrixPiece(p.transition, g))
    of_loss, of_gradients = errors("7", FOUR)
    assert of_loss < EXACT and of_gradients > SEEN


@every_version
def test_4_pieces_in_the_wrong_order_show(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        piece_exchange, "fold", lambda found, state: fold(reversed(list(found)), state)
    )
    assert errors(version, FOUR)[1] > SEEN


@every_version
def test_5_and_15_under_autocast_states_are_told_in_full_precision(version: str):
    model, row = spread_model(version).float(), rows()
    row.mask = row.mask.float()
    exact = learn_alone(model, row)
    row.autocast = True
    one = learn_alone(model, row)
    found = learn_together(model, row, THREE)
    assert {call.dtype for calls in found.calls for call in calls} == {torch.float32}
    # Both are as far from the exact gradients as products in bf16 are.
    assert error(found, exact) < 1.5 * error(one, exact)


@every_version
def test_6_and_7_documents_empty_a_state_whatever_its_transition(
    version: str, monkeypatch: pytest.MonkeyPatch
):
    # The first piece's transition is never multiplied by: nothing came before it.
    model, row = spread_model(version), rows(resets=True)
    expected = learn_alone(model, row)
    cross = spread_state.cross

    def overflowing(ranks: Any, own: Any, *rest: Any) -> Any:
        transition, *others = own.tensors()
        if ranks.rank == 0 and version != "4":
            own = own.with_tensors((torch.full_like(transition, torch.inf), *others))
        return cross(ranks, own, *rest)

    monkeypatch.setattr(spread_state, "cross", overflowing)
    assert error(learn_together(model, row, FOUR), expected) < EXACT


def test_6_keys_of_any_size_keep_their_scale():
    model, row = spread_model("4"), rows(resets=True)
    with torch.no_grad():
        for block in model.blocks:
            block.att.key.weight.mul_(30)
    expected = learn_alone(model, row, of_state=1e-30)
    assert error(learn_together(model, row, FOUR, of_state=1e-30), expected) < 1e-9


@every_version
def test_8_all_ranks_tell_the_same_in_the_same_order_whatever_the_data(version: str):
    model = spread_model(version)
    plain, blank = rows(), rows(resets=True)
    blank.mask = torch.zeros_like(blank.mask)
    calls = learn_together(model, plain, FOUR).calls
    assert calls[1:] == calls[:-1]
    assert learn_together(model, blank, FOUR).calls == calls
    frozen = spread_model(version, "lora")
    calls = learn_together(frozen, plain, FOUR).calls
    assert calls[1:] == calls[:-1] and len(calls[0]) > 0


@every_version
def test_9_trained_states_have_a_gradient_on_every_rank(version: str):
    model, row = spread_model(version, "states"), rows()
    # `learn_together` holds that the names are those of every rank.
    found = learn_together(model, row, FOUR)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.gradients.keys() == names and len(names) == 3


@every_version
def test_14_what_is_kept_for_a_second_pass_is_not_computed_again(
    version: str, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []
    cross = spread_state.cross

    def counts(ranks: Any, *rest: Any) -> Any:
        made.append(ranks.rank)
        return cross(ranks, *rest)

    monkeypatch.setattr(spread_state, "cross", counts)
    model = spread_model(version)
    model.grad_cp = True
    learn_together(model, rows(), THREE)
    assert sorted(made) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@every_version
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_is_told_has_the_size_of_states(version: str, ranks: int):
    model, row = spread_model(version), rows()
    layers, width, batch = 3, 32, 2
    heads, size = (width, 1) if version == "4" else (2, 16)
    (calls, *_) = learn_together(model, row, columns_of(T, ranks, None)).calls
    border = batch * width
    forward = [border, piece_numbers(version, batch, heads, size), border]
    backward = [border, state_numbers(version, batch, heads, size), border]
    assert [call.numbers for call in calls] == layers * forward + layers * backward
