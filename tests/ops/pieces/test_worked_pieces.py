"""The worked examples of the operators cut into pieces, eight digits of every number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_train.ops.pieces import (
    wkv4_piece,
    wkv4_state_gradient,
    wkv5_piece,
    wkv5_state_gradient,
    wkv6_piece,
    wkv6_state_gradient,
    wkv7_piece,
    wkv7_state_gradient,
)
from rwkv_train.ops.pieces.algebra import fold
from tests.ops.native_cases import require_kernel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["reference", "chunked", "native"])
def backend(request) -> str:
    if request.param == "native":
        require_kernel("wkv7_piece")
        require_kernel("wkv4")
    return request.param


def tokens(*rows) -> Tensor:
    """Rows of channels as [1, T, 1, N]."""
    return torch.tensor(np.array(rows, dtype=float)[None, :, None, :])


def near(*values):
    """The printed digits of a table, eight decimals."""
    return pytest.approx(np.array(values, dtype=float).flatten().tolist(), abs=2e-8)


def flat(x: Tensor) -> list[float]:
    return x.flatten().tolist()


R = tokens((1, 2), (0.5, -1), (1, 1))
K = tokens((1, 0), (0.5, 1), (-1, 2))
V = tokens((1, 2), (3, -1), (0.5, 0.5))
W = tokens((0, -1), (-2, 0.5), (-0.5, -3))
KAPPA = tokens((0.6, 0.8), (1, 0), (0, -1))
A, B = -KAPPA, KAPPA * tokens((0.5, 0.25), (0.9, 0.1), (0.3, 0.7))
S0 = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)[None, None]
GY = torch.ones_like(R)
# What arrives as the gradient of the final state.
GFINAL = torch.eye(2, dtype=torch.float64)[None, None]


def wkv7_parts(backend: str, *cuts: slice):
    """The pieces of RWKV-7's example and the gradients of their initial states."""
    pieces = [wkv7_piece(*(x[:, cut] for x in (W, K, V, A, B)), backend=backend) for cut in cuts]
    inputs = [[x[:, cut] for x in (GY, R, W, A, B)] for cut in cuts]
    return pieces, [wkv7_state_gradient(*given, backend=backend) for given in inputs]


def wkv6_parts(backend: str, *cuts: slice):
    """The same of RWKV-6's."""
    pieces = [wkv6_piece(*(x[:, cut] for x in (K, V, W)), backend=backend) for cut in cuts]
    inputs = [[x[:, cut] for x in (GY, R, W)] for cut in cuts]
    return pieces, [wkv6_state_gradient(*given, backend=backend) for given in inputs]


def folded(pieces, gradients):
    """The state before every piece and behind the last one, and the gradients of these."""
    behind = [piece.adjoint(g) for piece, g in zip(pieces, gradients)][::-1]
    states = [fold(pieces[:p], S0) for p in range(len(pieces) + 1)]
    return states, [fold(behind[:p], GFINAL) for p in range(len(pieces) + 1)][::-1]


ONE_BY_ONE = (slice(0, 1), slice(1, 2), slice(2, 3))


def test_wkv7_token_by_token(backend):
    pieces, gradients = wkv7_parts(backend, *ONE_BY_ONE)
    states, border = folded(pieces, gradients)
    assert flat(pieces[0].transition) == near(0.55840315, -0.12, -0.24, 0.68948821)
    assert flat(pieces[1].transition) == near(0.03025157, 0, 0, 0.68554532)
    assert flat(pieces[2].transition) == near(0.79533649, 0, 0, 0.27164453)
    assert flat(pieces[0].contribution) == near(1, 0, 2, 0)
    assert flat(pieces[1].contribution) == near(1.5, 3, -0.5, -1)
    assert flat(pieces[2].contribution) == near(-0.5, 1, -0.5, 1)
    assert flat(gradients[0]) == near((0.31840315, 1.13897642), (0.31840315, 1.13897642))
    assert flat(gradients[1]) == near((0.01512578, -0.68554532), (0.01512578, -0.68554532))
    assert flat(gradients[2]) == near((0.79533649, 0.27164453), (0.79533649, 0.27164453))
    assert flat(states[1]) == near(1.00784031, 0.12589764, 2.07152094, 0.23979528)
    assert flat(states[2]) == near(1.53048875, 3.08630854, -0.43733324, -0.83560947)
    assert flat(states[3]) == near(0.71725356, 1.83837885, -0.84782709, 0.77301126)
    assert flat(border[1]) == near(0.06324613, -0.49932068, 0.03918596, -0.31309604)
    assert flat(border[2]) == near(1.59067299, 0.27164453, 0.79533649, 0.54328907)
    assert flat(border[0]) == near(0.41363847, 0.77952162, 0.37785624, 0.91369576)


def test_wkv7_in_two_pieces(backend):
    pieces, gradients = wkv7_parts(backend, slice(0, 1), slice(1, 3))
    _, border = folded(pieces, gradients)
    assert flat(pieces[1].transition) == near(0.02406018, 0, 0, 0.18622464)
    assert flat(pieces[1].contribution) == near(0.69300474, 1.8149336, -0.89766825, 0.72835547)
    assert flat(gradients[1]) == near((0.03918596, -0.49932068), (0.03918596, -0.49932068))
    assert flat(border[1]) == near(0.06324613, -0.49932068, 0.03918596, -0.31309604)


def test_wkv6_token_by_token(backend):
    pieces, gradients = wkv6_parts(backend, *ONE_BY_ONE)
    states, border = folded(pieces, gradients)
    assert flat(pieces[0].decay) == near(0.36787944, 0.69220063)
    assert flat(pieces[1].decay) == near(0.87342302, 0.19229565)
    assert flat(pieces[2].decay) == near(0.54523921, 0.95143199)
    assert flat(pieces[1].contribution) == near(1.5, 3, -0.5, -1)
    assert flat(gradients[0]) == near((1, 2), (1, 2))
    assert flat(gradients[1]) == near((0.5, -1), (0.5, -1))
    assert flat(states[1]) == near(1.03678794, 0.13844013, 2.11036383, 0.27688025)
    assert flat(states[2]) == near(2.40555446, 3.02662143, 1.34324035, -0.94675713)
    assert flat(states[3]) == near(0.81160262, 3.87962446, 0.23238731, 0.09922497)
    assert flat(border[1]) == near(1.8496475, -0.80770435, 1.37342302, -0.62474813)
    assert flat(border[2]) == near(1.54523921, 1, 1, 1.95143199)
    assert flat(border[0]) == near(1.68044729, 1.44090654, 1.50525409, 1.56754896)


def test_wkv6_in_two_pieces(backend):
    pieces, gradients = wkv6_parts(backend, slice(0, 1), slice(1, 3))
    assert flat(pieces[1].decay) == near(0.47622448, 0.18295623)
    assert flat(pieces[1].contribution) == near(0.31785882, 3.85429598, -0.77261961, 0.04856801)
    assert flat(gradients[1]) == near((1.37342302, -0.80770435), (1.37342302, -0.80770435))


def test_wkv5_in_two_pieces(backend):
    one, v, w = tokens((1,), (1,), (1,)), tokens((1,), (2,), (3,)), torch.zeros(1, 1).double()
    cuts = (slice(0, 1), slice(1, 3))
    pieces = [wkv5_piece(one[:, cut], v[:, cut], w, backend=backend) for cut in cuts]
    gradients = [wkv5_state_gradient(one[:, cut], one[:, cut], w, backend=backend) for cut in cuts]
    behind = [piece.adjoint(g) for piece, g in zip(pieces, gradients)][::-1]
    assert [piece.decay.item() for piece in pieces] == near(0.36787944, 0.13533528)
    assert [piece.contribution.item() for piece in pieces] == near(1, 3.73575888)
    assert [g.item() for g in gradients] == near(1, 1.36787944)
    assert flat(fold(pieces, None)) == near(3.87109417)
    assert flat(fold(behind[:1], None)) == near(1.36787944)
    assert flat(fold(behind, None)) == near(1.50321472)


WKV4_CASES = {
    "constant keys": {
        "inputs": (0.0, 0.0, (0, 0, 0)),
        "exponent": -2,
        "sums": (3.73575888, 1.36787944, 0),
        "gradient": (0.6553624, -1.10219979),
        "final": (3.87109417, 1.50321472, 0),
    },
    "other keys": {
        "inputs": (-1.0, 0.5, (0, 1, -1)),
        "exponent": -0.73575888,
        "sums": (2.5865436, 1.19551453, 0.63212056),
        "gradient": (0.35474277, -0.67253149),
        "final": (2.84118998, 1.45016091, 0.63212056),
    },
}


@pytest.mark.parametrize("case", WKV4_CASES.values(), ids=WKV4_CASES)
def test_wkv4_in_two_pieces(backend, case):
    decay, bonus, keys = case["inputs"]
    w, u = (torch.tensor([x]).double() for x in (decay, bonus))
    k, v = (torch.tensor(x).double().view(1, 3, 1) for x in (keys, (1, 2, 3)))
    cuts = (slice(0, 1), slice(1, 3))
    first, second = (wkv4_piece(w, k[:, cut], v[:, cut], backend=backend) for cut in cuts)
    gy = torch.ones(1, 2, 1).double()
    state = fold([first], None)
    gaa, gbb, scale = wkv4_state_gradient(gy, w, u, k[:, 1:], v[:, 1:], state, backend=backend)
    assert flat(torch.stack(first.sums)) == near(1, 1, 0)
    assert flat(torch.stack(second.sums)) == near(case["sums"])
    assert flat(second.span * second.log_decay) == near(case["exponent"])
    assert flat(torch.stack((gaa, gbb))) == near(case["gradient"])
    assert flat(scale) == [0.0]
    assert flat(torch.stack(fold([first, second], None))) == near(case["final"])
