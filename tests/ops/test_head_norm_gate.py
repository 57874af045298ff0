"""The gated head norm: against its definition, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.head_norm_gate import head_norm_gate
from tests.helpers import allowed_error, assert_close, relative_rms
from tests.ops.head_norm_cases import EPS, HeadNormCase, make_head_norm_case, run_head_norm
from tests.ops.native_cases import require_kernel

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# Tighter than the table's fp64: two sums over a head is all there is.
EXACT = 1e-12


@pytest.fixture(scope="module", params=["native", "reference"])
def backend(request):
    if request.param == "native":
        require_native()
    return request.param


def require_native() -> None:
    require_kernel("head_norm_gate")
    # the first call registers the operator with torch
    run_head_norm(make_head_norm_case(1, 1, 1, 2), "native")


def check(case: HeadNormCase, backend: str, dtype: torch.dtype) -> None:
    """Fails unless `backend`, in dtype, follows the definition on the same rounded inputs."""
    case = case.rounded(dtype)
    expected, actual = run_head_norm(case, "definition"), run_head_norm(case, backend, dtype)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        limit = EXACT if dtype == torch.float64 else allowed_error(expected[name], value.dtype)
        assert_close(name, value, expected[name], limit)


def test_it_normalises_a_head_adds_the_bonus_and_gates(backend):
    # mean 2, variance 4, so that with eps 5 a deviation of 2 becomes 2/3
    y, v = torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[[10.0, 20.0]]]])
    g = torch.tensor([[[2.0, -1.0]]])
    weight, bias, s = torch.tensor([3.0, 6.0]), torch.tensor([1.0, 2.0]), torch.tensor([[[0.5]]])
    o = head_norm_gate(y, g, weight, bias, v, s, eps=5.0, backend=backend)
    assert o.flatten().tolist() == pytest.approx([8, -16])
    o = head_norm_gate(y, g, weight, bias, eps=5.0, activation="silu", backend=backend)
    assert o.flatten().tolist() == pytest.approx([-2 * 0.88079708, -6 * 0.26894142])


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "batch, time, heads, size",
    [
        (1, 1, 1, 1),
        (2, 63, 3, 32),
        (2, 64, 2, 64),
        (3, 65, 1, 128),
        (1, 200, 3, 40),
        (1, 3, 2, 1100),
    ],
)
def test_it_follows_its_definition_at_any_size(backend, batch, time, heads, size, silu):
    case = make_head_norm_case(batch, time, heads, size, seed=time, silu=silu)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        check(case, backend, dtype)


def test_a_bonus_and_silu_may_come_together_or_neither(backend):
    case = make_head_norm_case(2, 5, 2, 24)
    check(HeadNormCase(case.inputs, "silu", case.go), backend, torch.float32)
    plain = {name: case.inputs[name] for name in ("y", "g", "weight", "bias")}
    check(HeadNormCase(plain, "identity", case.go), backend, torch.float32)


def test_a_constant_head_has_finite_gradients_and_gives_the_bias(backend):
    case = make_head_norm_case(1, 4, 2, 64, silu=True)
    case.inputs["y"][:] = -7.0
    found = run_head_norm(case.rounded(torch.float32), backend, torch.float32)
    g, bias = case.inputs["g"], case.inputs["bias"]
    assert_close("o", found["o"], bias * g * g.sigmoid(), 1e-6)
    assert found["gy"].isfinite().all() and found["gy"].abs().max() > 1
    assert not found["gweight"].any()


def test_nan_stays_in_its_own_head_and_token(backend):
    # heads that do not fill whole vectors: nothing may be left behind in what fills them up
    case = make_head_norm_case(1, 6, 2, 5)
    whole = run_head_norm(case, backend)
    broken = {name: x.clone() for name, x in case.inputs.items()}
    broken["y"][0, 2, 1, 3] = float("nan")
    broken["s"][0, 4, 0] = float("inf")
    found = run_head_norm(HeadNormCase(broken, case.activation, case.go), backend)
    spoilt = torch.zeros(1, 6, 2, 5, dtype=torch.bool)
    spoilt[0, 2, 1], spoilt[0, 4, 0] = True, True
    assert not found["o"].unflatten(-1, (2, 5))[spoilt].isfinite().any()
    for name in ("o", "gg"):
        same = found[name].unflatten(-1, (2, 5)) == whole[name].unflatten(-1, (2, 5))
        assert torch.equal(same, ~spoilt)
    spoilt[0, 4, 0] = False  # the bonus is not part of what is normalised
    assert torch.equal(found["gy"].isnan(), spoilt)
    assert found["gweight"][:5].isfinite().all() and found["gweight"][5:].isnan().all()


def test_sums_over_many_tokens_lose_nothing(backend):
    # 4096 equal terms: a running sum in fp32 rounds at every one, a tree does not
    case = make_head_norm_case(2, 2048, 1, 32)
    inputs = {name: x.clone() for name, x in case.inputs.items()}
    inputs["g"][:], inputs["s"][:] = 1.1, 0
    case = HeadNormCase(inputs, case.activation, torch.full_like(case.go, 1 / 3))
    case = case.rounded(torch.float32)
    expected, found = (
        run_head_norm(case, *how) for how in (("definition",), (backend, torch.float32))
    )
    assert relative_rms(found["gbias"], expected["gbias"]) < 1e-6


def test_the_number_of_threads_changes_no_bit():
    require_native()
    case = make_head_norm_case(3, 200, 3, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run_head_norm(case, "native", torch.float32)
        torch.set_num_threads(2)
        together = run_head_norm(case, "native", torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


@pytest.mark.parametrize("silu", [True, False])
def test_its_ops_pass_opcheck(silu):
    require_native()
    case = make_head_norm_case(2, 5, 2, 24, silu=silu).rounded(torch.bfloat16)
    leaves = {
        name: x.to(torch.float32 if name in ("weight", "bias", "s") else torch.bfloat16)
        for name, x in case.inputs.items()
    }
    plain = [leaves.get(name) for name in ("y", "g", "weight", "bias", "v", "s")]
    wanted = [x if x is None else x.clone().requires_grad_() for x in plain]
    results = opcheck(torch.ops.rwkv.head_norm_gate_forward, (*wanted, EPS, silu))
    assert set(results.values()) == {"SUCCESS"}
    go = case.go.bfloat16()
    results = opcheck(torch.ops.rwkv.head_norm_gate_backward, (go, *plain, EPS, silu))
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_checkpointed_strided_and_under_autocast_it_is_the_same(backend):
    # Another operator's shapes would make this one's dynamic.
    torch.compiler.reset()
    case = make_head_norm_case(2, 35, 2, 24)
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]
    strided = [x.detach().mT.contiguous().mT.requires_grad_() if x.dim() > 1 else x for x in leaves]

    def out(*tensors):
        return head_norm_gate(*tensors, eps=EPS, backend=backend)

    compiled = torch.compile(out, backend="aot_eager", fullgraph=True)
    plain = out(*leaves)
    expected = torch.autograd.grad(plain, leaves, case.go.float())
    for call, given in (
        (compiled, leaves),
        (lambda *x: checkpoint(out, *x, use_reentrant=False), leaves),
        (out, strided),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            o = call(*given)
        assert torch.equal(o, plain)
        gradients = torch.autograd.grad(o, given, case.go.float())
        assert all(torch.equal(one, other) for one, other in zip(gradients, expected))
    with torch.no_grad():
        assert torch.equal(out(*leaves), plain)


def test_gradients_of_gradients_are_refused_by_native():
    require_native()
    case = make_head_norm_case(1, 2, 1, 8)
    leaves = [x.clone().requires_grad_() for x in case.inputs.values()]
    o = head_norm_gate(*leaves, eps=EPS, backend="native")
    (gy,) = torch.autograd.grad(o.sum(), leaves[:1], create_graph=True)
    with pytest.raises(BackendError, match=r"head_norm_gate: .* gradients once, .* 'reference'"):
        gy.sum().backward()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"y": torch.ones(2, 5, 6)}, "y has shape [2, 5, 6], expected [B, T, H, N], no axis empty"),
        ({"g": torch.ones(2, 5, 7)}, "g has shape [2, 5, 7], expected [2, 5, 6]"),
        ({"g": torch.ones(2, 5, 6).half()}, "g has dtype torch.float16, expected torch.float32"),
        ({"weight": torch.ones(5)}, "weight has shape [5], expected [6]"),
        ({"bias": None}, "bias is NoneType, expected a float tensor [6]"),
        ({"s": None}, "v is given without s; give both"),
        ({"v": None}, "s is given without v; give both"),
        ({"s": torch.ones(2, 5, 3)}, "s has shape [2, 5, 3], expected [2, 5, 2]"),
        ({"activation": "relu"}, "activation is 'relu', expected 'identity' or 'silu'"),
        ({"backend": "chunked"}, "unknown backend 'chunked'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(changed, message):
    arguments = {
        "y": torch.ones(2, 5, 2, 3),
        "g": torch.ones(2, 5, 6),
        "weight": torch.ones(6),
        "bias": torch.ones(6),
        "v": torch.ones(2, 5, 2, 3),
        "s": torch.ones(2, 5, 2),
        "eps": EPS,
    }
    with pytest.raises(BackendError) as error:
        head_norm_gate(**arguments | changed)
    assert message in str(error.value)
