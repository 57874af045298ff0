"""Pieces as maps: composition, scans, what is skipped, precision, messages."""

from __future__ import annotations

import threading

import pytest
import torch

from rwkv_train.ops.pieces import wkv6_piece, wkv7_piece, wkv7_state_gradient
from rwkv_train.ops.pieces.algebra import DecayPiece, MatrixPiece, ScaledPiece, fold
from rwkv_train.ops.pieces.full_products import full_products
from rwkv_train.ops.pieces.message import (
    pack_piece,
    pack_state,
    piece_numbers,
    state_numbers,
    unpack_piece,
    unpack_state,
)
from rwkv_train.ops.pieces.scan import Scan, scan_distances
from tests.ops.native_cases import OPS
from tests.ops.pieces.piece_cases import slow_case
from tests.ops.pieces.split_runs import cut_case, piece_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BATCH, HEADS, SIZE = 2, 3, 4


def pieces_of(op: str, count: int = 3, dtype: torch.dtype = torch.float64):
    case = slow_case(op, BATCH, count * 5, HEADS, SIZE)
    return [
        piece_of(op, rank, "reference") for rank in cut_case(case, range(5, count * 5, 5), dtype)
    ]


def test_pieces_compose_as_by_hand():
    first = DecayPiece(torch.tensor([[[0.5, 2.0]]]), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    second = DecayPiece(torch.tensor([[[0.25, 3.0]]]), torch.ones(1, 1, 2, 2))
    both = first.then(second)
    assert both.decay.flatten().tolist() == [0.125, 6.0]
    assert both.contribution.flatten().tolist() == [1.25, 7.0, 1.75, 13.0]
    matrices = (
        MatrixPiece(torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]]]), torch.zeros(1, 1, 2, 2)),
        MatrixPiece(torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]]), torch.ones(1, 1, 2, 2)),
    )
    both = matrices[0].then(matrices[1])
    assert both.transition.flatten().tolist() == [0.0, 1.0, 2.0, 2.0]
    assert both.carry(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])).flatten().tolist() == [1, 2, 3, 3]
    assert both.adjoint(torch.zeros(1, 1, 2, 2)).transition.flatten().tolist() == [0, 2, 1, 2]


def test_sums_on_different_scales_compose_as_by_hand():
    """2 e^3 decayed by two tokens of e^-1 and 5 e^1 are 7 e^1."""
    one, log_decay = torch.ones(1, 1), torch.tensor([-1.0])
    first = ScaledPiece(torch.tensor([4.0]), log_decay, (2 * one, one, 3 * one))
    second = ScaledPiece(torch.tensor([2.0]), log_decay, (5 * one, one, one))
    both = first.then(second)
    assert both.span.tolist() == [6.0]
    assert [part.item() for part in both.sums] == [7.0, 2.0, 1.0]


@pytest.mark.parametrize("op", OPS)
def test_composition_is_associative(op):
    a, b, c = pieces_of(op)
    for x, y in zip(a.then(b).then(c).tensors(), a.then(b.then(c)).tensors()):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


def test_an_absent_state_is_not_multiplied_where_the_transition_overflowed():
    infinite = torch.full((1, 1, 2, 2), torch.inf)
    piece = MatrixPiece(infinite, torch.ones(1, 1, 2, 2))
    assert piece.carry(None).tolist() == torch.ones(1, 1, 2, 2).tolist()
    assert fold([], None) is None
    # what it would have been
    assert piece.carry(torch.zeros(1, 1, 2, 2)).isnan().all()


@pytest.mark.parametrize("log_decay", [0.0, -1e-30, -1e30])
def test_closed_rows_of_wkv4_are_closed_for_every_decay(log_decay):
    nan, one = torch.tensor([[torch.nan]]), torch.ones(1, 1)
    piece = ScaledPiece(torch.tensor([torch.inf]), torch.tensor([log_decay]), (one, one, -one))
    after = piece.carry((nan, nan, 1e30 * one))
    assert [part.item() for part in after] == [1.0, 1.0, -1.0]


def test_a_scan_takes_as_many_rounds_as_the_logarithm_of_the_ranks():
    expected = {1: [], 2: [1], 3: [1, 2], 4: [1, 2], 5: [1, 2, 4], 16: [1, 2, 4, 8]}
    assert {ranks: scan_distances(ranks) for ranks in expected} == expected
    assert scan_distances(17) == [1, 2, 4, 8, 16]


class Word(ScaledPiece):
    """A piece of which one sees what was joined to it."""

    def __init__(self, letters: str) -> None:
        object.__setattr__(self, "letters", letters)

    def then(self, later):
        return Word(self.letters + later.letters)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16])
def test_a_scan_joins_all_pieces_before_a_rank_in_their_order(ranks):
    letters = "abcdefghijklmnop"[:ranks]
    scans = [Scan(Word(letter)) for letter in letters]
    for distance in scan_distances(ranks):
        messages = [scan.message() for scan in scans]
        scans = [
            scan.joined(messages[p - distance] if p >= distance else None)
            for p, scan in enumerate(scans)
        ]
    found = [scan.before.letters if scan.before else "" for scan in scans]
    assert found == [letters[:p] for p in range(ranks)]
    assert scans[-1].message().letters == letters


@pytest.mark.parametrize("op", OPS)
def test_messages_are_as_long_as_the_formula_says_and_lose_nothing(op):
    width, version = HEADS * SIZE, op[-1]
    by_hand = {
        "wkv4": (3 * BATCH * width + BATCH, 3 * BATCH * width),
        "wkv5": (BATCH * width * (SIZE + 1), BATCH * width * SIZE),
        "wkv6": (BATCH * width * (SIZE + 1), BATCH * width * SIZE),
        "wkv7": (2 * BATCH * width * SIZE, BATCH * width * SIZE),
    }[op]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        piece, other, _ = pieces_of(op, dtype=dtype)
        state = piece.carry(None)
        message, state_message = pack_piece(piece), pack_state(state)
        assert message.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (message.numel(), state_message.numel()) == by_hand
        assert piece_numbers(version, BATCH, HEADS, SIZE) == message.numel()
        assert state_numbers(version, BATCH, HEADS, SIZE) == state_message.numel()
        again, state_again = unpack_piece(message, other), unpack_state(state_message, state)
        assert all(map(torch.equal, again.tensors(), piece.tensors()))
        assert torch.equal(pack_state(state_again), state_message)


def test_pieces_have_no_graph_and_leave_the_inputs_alone():
    x = torch.randn(1, 6, 1, 4, requires_grad=True)
    w = torch.zeros(1, 6, 1, 4, requires_grad=True)
    row = torch.zeros(1, 4, requires_grad=True)
    for backend in ("reference", "chunked"):
        found = [
            *wkv6_piece(x, x, w, base=row, backend=backend).tensors(),
            *wkv7_piece(w, x, x, x, x, base=row, backend=backend).tensors(),
            wkv7_state_gradient(x, x, w, x, x, base=row, backend=backend),
        ]
        assert not any(part.requires_grad for part in found)
    assert x.grad is None and w.grad is None and row.grad is None


def test_products_are_full_whatever_the_program_has_chosen():
    case = slow_case("wkv7", 1, 70, 1, 32)
    first, second = cut_case(case, (35,), torch.float32)

    def joined():
        pieces = [piece_of("wkv7", rank, "chunked") for rank in (first, second)]
        return torch.cat([x.flatten() for x in pieces[0].then(pieces[1]).tensors()])

    plain, before = joined(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = joined()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, plain)


def test_the_setting_of_products_comes_back_when_the_last_thread_leaves():
    before = torch.get_float32_matmul_precision()
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with full_products(CPU):
            entered.set()
            leave.wait(30)

    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="inside"), full_products(CPU):
            thread = threading.Thread(target=stay)
            thread.start()
            assert entered.wait(30)
            raise ValueError("inside")
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join(30)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        leave.set()
        torch.set_float32_matmul_precision(before)
