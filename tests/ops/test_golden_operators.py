"""Golden operator vectors and worked examples, for every backend that needs no compiler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7
from tests.helpers import load_arrays

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = ("reference", "chunked")


def leaf(values) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=True)


def tokens(*rows) -> torch.Tensor:
    """Rows of channels as [1, T, 1, N]."""
    return leaf(np.array(rows, dtype=float)[None, :, None, :])


def flat(tensor: torch.Tensor) -> list[float]:
    return tensor.detach().flatten().tolist()


def near(*values):
    """The printed digits of a worked example, eight decimals."""
    return pytest.approx(np.array(values, dtype=float).flatten().tolist(), abs=2e-8)


def vectors(version: str, case: str) -> dict[str, torch.Tensor]:
    arrays = load_arrays(f"rwkv{version}_tiny")
    return {name.split("/")[1]: leaf(x) for name, x in arrays.items() if name.startswith(case)}


def assert_gradients(objective: torch.Tensor, given: dict[str, torch.Tensor], names) -> None:
    gradients = torch.autograd.grad(objective, [given[name] for name in names])
    for name, gradient in zip(names, gradients):
        torch.testing.assert_close(gradient, given[f"g_{name}"].detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv4_gives_the_golden_results_from_the_empty_state(backend):
    given = vectors("4", "op_nostate")
    y, (aa, bb, pp) = wkv4(
        given["time_decay"], given["time_first"], given["k"], given["v"], backend=backend
    )
    for actual, name in ((y, "y"), (aa, "aaT"), (bb, "bbT"), (pp, "ppT")):
        torch.testing.assert_close(actual, given[name], rtol=1e-13, atol=1e-13)
    assert_gradients((y * given["gy"]).sum(), given, ("time_decay", "time_first", "k", "v"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv4_gives_the_golden_results_from_a_given_state(backend):
    given = vectors("4", "op_state")
    state = (given["aa0"], given["bb0"], given["pp0"])
    y, (aa, bb, pp) = wkv4(
        given["time_decay"], given["time_first"], given["k"], given["v"], state, backend=backend
    )
    for actual, name in ((y, "y"), (aa, "aaT"), (bb, "bbT"), (pp, "ppT")):
        torch.testing.assert_close(actual, given[name], rtol=1e-13, atol=1e-13)
    objective = (y * given["gy"]).sum() + (aa * given["gaaT"]).sum() + (bb * given["gbbT"]).sum()
    names = ("time_decay", "time_first", "k", "v", "aa0", "bb0")
    assert_gradients(objective, given, names)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_wkv4s_scale_is_that_of_the_sums_it_scales(backend):
    given = vectors("4", "op_state")
    state = (given["aa0"], given["bb0"], given["pp0"])
    y, _ = wkv4(
        given["time_decay"], given["time_first"], given["k"], given["v"], state, backend=backend
    )
    grad_aa, grad_bb, grad_pp = torch.autograd.grad((y * given["gy"]).sum(), state)
    expected = given["aa0"] * grad_aa + given["bb0"] * grad_bb
    torch.testing.assert_close(grad_pp, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv5_gives_the_golden_results_from_the_zero_state(backend):
    given = vectors("5", "op_nostate")
    inputs = (given[name] for name in ("r", "k", "v", "time_decay", "time_faaaa"))
    y, state = wkv5(*inputs, backend=backend)
    torch.testing.assert_close(y, given["y"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state.mT, given["ST"], rtol=1e-12, atol=1e-13)
    names = ("r", "k", "v", "time_decay", "time_faaaa")
    assert_gradients((y * given["gy"]).sum(), given, names)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv5_gives_the_golden_results_from_a_given_state(backend):
    given = vectors("5", "op_state")
    inputs = (given[name] for name in ("r", "k", "v", "time_decay", "time_faaaa"))
    # the vectors store the state as [key, value]
    y, state = wkv5(*inputs, given["S0"].mT, backend=backend)
    torch.testing.assert_close(y, given["y"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state.mT, given["ST"], rtol=1e-12, atol=1e-13)
    objective = (y * given["gy"]).sum() + (state.mT * given["gST"]).sum()
    assert_gradients(objective, given, ("r", "k", "v", "time_decay", "time_faaaa", "S0"))


WKV4_BY_HAND = {
    "equal keys": {
        "w": 0.0,
        "u": 0.0,
        "k": (0, 0, 0),
        "y": (1, 1.5, 2.26695639),
        "state": (3.87109417, 1.50321472, 0),
        "gw": 0.19683739,
        "gu": 0.55957809,
        "gk": (-0.44683739, 0.13725930, 0.30957809),
        "gv": (1.65536240, 0.92231880, 0.42231880),
    },
    "different keys": {
        "w": -1.0,
        "u": 0.5,
        "k": (0, 1, -1),
        "y": (1, 1.81757448, 1.97867322),
        "state": (2.84118998, 1.45016091, 0.63212056),
        "gw": 0.06204002,
        "gu": 0.30335705,
        "gk": (-0.31778872, 0.16357812, 0.15421060),
        "gv": (1.35474277, 1.49426677, 0.15099046),
    },
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", WKV4_BY_HAND)
def test_wkv4_gives_the_numbers_worked_out_by_hand(backend, case):
    expected = WKV4_BY_HAND[case]
    w, u = leaf([expected["w"]]), leaf([expected["u"]])
    k = leaf(np.array(expected["k"], dtype=float)[None, :, None])
    v = leaf(np.array([1.0, 2.0, 3.0])[None, :, None])
    y, state = wkv4(w, u, k, v, backend=backend)
    assert flat(y) == near(*expected["y"])
    assert [part.item() for part in state] == near(*expected["state"])
    gradients = torch.autograd.grad(y.sum(), (w, u, k, v))
    for gradient, name in zip(gradients, ("gw", "gu", "gk", "gv")):
        assert flat(gradient) == near(expected[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv5_gives_the_numbers_worked_out_by_hand(backend):
    r, k, v = tokens([1], [1], [1]), tokens([1], [1], [1]), tokens([1], [2], [3])
    w, u, s0 = leaf([[0.0]]), leaf([[0.5]]), leaf(np.zeros((1, 1, 1, 1)))
    y, state = wkv5(r, k, v, w, u, s0, backend=backend)
    assert flat(y) == near(0.5, 2, 3.86787944)
    assert flat(state) == near(3.87109417)
    gradients = torch.autograd.grad(y.sum(), (r, k, v, u, w, s0))
    expected = (
        (0.5, 2, 3.86787944),
        (1.86787944, 3, 1.5),
        (1.86787944, 1.5, 0.5),
        (6,),
        (-0.36787944,),
        (1.50321472,),
    )
    for gradient, values in zip(gradients, expected):
        assert flat(gradient) == near(*values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", [1, 2])
def test_wkv5s_decay_learns_nothing_from_one_or_two_tokens_after_the_zero_state(backend, time):
    values = [torch.randn(1, time, 1, 3, dtype=torch.float64) for _ in range(3)]
    w = leaf([[0.3, -0.2, -3.0]])
    y, _ = wkv5(*values, w, leaf([[0.1, 0.2, 0.3]]), backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), w, materialize_grads=True)
    assert flat(gradient) == [0, 0, 0]


def worked_example():
    """r, w, k, v and the initial state of the worked examples of RWKV-6 and RWKV-7."""
    return (
        tokens([1, 2], [0.5, -1], [1, 1]),
        tokens([0, -1], [-2, 0.5], [-0.5, -3]),
        tokens([1, 0], [0.5, 1], [-1, 2]),
        tokens([1, 2], [3, -1], [0.5, 0.5]),
        leaf(np.array([[0.1, 0.2], [0.3, 0.4]])[None, None]),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv6_gives_the_worked_example(backend):
    r, w, k, v, s0 = worked_example()
    u = leaf([[0.5, -0.25]])
    y, state = wkv6(r, k, v, w, u, s0, backend=backend)
    assert flat(y) == near((1, 2.1), (1.50495385, 0.40330167), (4.93217589, -0.10351678))
    assert flat(state) == near((0.81160262, 3.87962446), (0.23238731, 0.09922497))
    objective = y.sum() + state[0, 0].trace()
    gradients = torch.autograd.grad(objective, (r, k, v, w, u, s0))
    expected = (
        ((1.9, 0.6), (3.64715178, -0.08467962), (3.2487948, 1.5798643)),
        ((6.09649353, -3.5572006), (4.13571764, 1.54856801), (1, 0.25)),
        ((2.3496475, 1.87342302), (2.14761961, 2.82643199), (-2, 1)),
        ((-0.21962096, 0.10477174), (-0.43882988, -0.21519319), (-0.7955272, 0.04484695)),
        ((2.5, 0),),
        ((1.68044729, 1.44090654), (1.50525409, 1.56754896)),
    )
    for gradient, values in zip(gradients, expected):
        assert flat(gradient) == near(*values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv7_gives_the_worked_example(backend):
    r, w, k, v, s0 = worked_example()
    kappa = np.array([[0.6, 0.8], [1, 0], [0, -1]])
    rate = np.array([[0.5, 0.25], [0.9, 0.1], [0.3, 0.7]])
    a, b = tokens(*-kappa), tokens(*(kappa * rate))
    y, state = wkv7(r, w, k, v, a, b, s0, backend=backend)
    assert flat(y) == near(
        (1.2596356, 2.55111151), (-2.32106416, 0.61694284), (2.5556324, -0.07481583)
    )
    assert flat(state) == near((0.71725356, 1.83837885), (-0.84782709, 0.77301126))
    objective = y.sum() + state[0, 0].trace()
    gradients = torch.autograd.grad(objective, (r, w, k, v, a, b, s0))
    expected = (
        ((3.07936126, 0.36569293), (1.0931555, 2.25069907), (-0.13057353, 2.6113901)),
        ((-0.04681081, -0.09875951), (-0.28378276, 0.01966187), (-0.29742902, -0.03767543)),
        ((3.14161805, 4.87448724), (4.97668247, -1.72835547), (1.5, 1.5)),
        ((1.06324613, 1.03918596), (0.31698103, 0.19095732), (0, 3)),
        ((0.25665194, 0.38347657), (4.31134308, 0.51644374), (-0.45907558, -0.99056273)),
        ((-0.75350713, -1.17360143), (-4.7903812, 1.68015226), (5.33700761, 1.41508961)),
        ((0.41363847, 0.77952162), (0.37785624, 0.91369576)),
    )
    for gradient, values in zip(gradients, expected):
        assert flat(gradient) == near(*values)
