"""The weights of RWKV-7's bonus, which wkv7 computes beside its outputs: value and gradients."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.precision import compute_dtype
from rwkv_train.ops.wkv7 import wkv7_and_bonus
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import WIDE, Case, make_case, require_native
from tests.ops.native_cases import run as run_without
from tests.ops.parity import rounded

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("native", "chunked")
SIZES = ((2, 63, 2, 64), (1, 65, 3, 33), (3, 1, 1, 128), (2, 130, 1, 5))


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    require_native("wkv7")


def bonus_case(sizes: tuple[int, int, int, int]) -> tuple[Case, Tensor, Tensor]:
    """An ordinary call with resets, rounded to bf16, the bonus, and what arrives for s."""
    case = make_case("wkv7", *sizes, seed=sizes[1], reset=True)
    generator = torch.Generator().manual_seed(1)
    bonus, gs = (
        torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16().double()
        for shape in ((sizes[2], sizes[3]), sizes[:3])
    )
    return rounded(case, torch.bfloat16), bonus, gs


def call(case: Case, leaves: dict[str, Tensor], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """y, s and the final state of the operator on `leaves`."""
    sequences = [leaves[name] for name in "rwkvab"]
    options = {"base": leaves["base"], "backend": backend, "reset": case.reset}
    return wkv7_and_bonus(*sequences, leaves["bonus"], leaves.get("state"), **options)


def run(
    case: Case, bonus: Tensor, gs: Tensor | None, backend: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Every result by name; gs None: nothing arrives for s."""
    wide = compute_dtype(dtype)
    leaves = {
        name: x.to(wide if name in (*WIDE, "bonus") else dtype).requires_grad_()
        for name, x in {**case.inputs, "bonus": bonus}.items()
    }
    y, s, final_state = call(case, leaves, backend)
    loss = (y.double() * case.gy).sum() + (final_state.double() * case.gstate[0]).sum()
    if gs is not None:
        loss = loss + (s.double() * gs).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    found = {"y": y.detach(), "s": s.detach(), "final state": final_state.detach()}
    return found | {f"g{name}": g for name, g in zip(leaves, gradients)}


@lru_cache(maxsize=1)
def expected_of(sizes: tuple[int, int, int, int]) -> dict[str, Tensor]:
    return run(*bonus_case(sizes), "reference", torch.float64)


@pytest.mark.parametrize("backend", ("reference", *BACKENDS))
def test_it_weighs_the_products_of_a_head(backend):
    names, one = "rwkvab", torch.zeros(1, 1, 1, 2)
    given = {name: one.clone() for name in names}
    given |= {"r": torch.tensor([[[[1.0, 2.0]]]]), "k": torch.tensor([[[[3.0, 5.0]]]])}
    leaves = [given[name].requires_grad_() for name in names]
    bonus = torch.tensor([[10.0, 1.0]], requires_grad=True)
    y, s, _ = wkv7_and_bonus(*leaves, bonus, backend=backend)
    assert s.tolist() == [[[40.0]]] and not y.any()
    (2 * s.sum() + y.sum()).backward()
    assert given["r"].grad.flatten().tolist() == [60, 10]
    assert given["k"].grad.flatten().tolist() == [20, 4]
    assert bonus.grad.flatten().tolist() == [6, 20]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_equals_the_reference_at_any_size(sizes, backend):
    case, bonus, gs = bonus_case(sizes)
    for dtype in DTYPES:
        for name, value in run(case, bonus, gs, backend, dtype).items():
            exact = expected_of(sizes)[name]
            assert_close(f"{name} in {dtype}", value, exact, allowed_error(exact, value.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_else_is_as_without_a_bonus_when_nothing_arrives_for_it(backend):
    case, bonus, _ = bonus_case((2, 40, 2, 16))
    plain = run_without(case, backend, torch.bfloat16)
    found = run(case, bonus, None, backend, torch.bfloat16)
    assert not found.pop("gbonus").any()
    del found["s"]
    assert all(torch.equal(value, plain[name]) for name, value in found.items())


def test_the_number_of_threads_changes_no_bit():
    given = (*bonus_case((3, 70, 3, 64)), "native", torch.float32)
    alone = run(*given)
    torch.set_num_threads(2)
    together = run(*given)
    torch.set_num_threads(1)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_its_ops_pass_opcheck():
    case, bonus, gs = bonus_case((2, 20, 2, 8))
    inputs = [case.inputs[name].float() for name in (*"rwkvab", "base")]
    wanted = [x.clone().requires_grad_() for x in (*inputs, bonus.float())]
    forward = (*wanted, None, None, case.reset, False, 16, 0)
    results = opcheck(torch.ops.rwkv.wkv7_forward, forward)
    assert set(results.values()) == {"SUCCESS"}
    kept = torch.ops.rwkv.wkv7_forward(*forward)[2].detach()
    options = (False, torch.float32, 16, 0)
    backward = (case.gy.float(), None, gs.float(), *inputs, bonus.float(), case.reset, kept)
    results = opcheck(torch.ops.rwkv.wkv7_backward, (*backward, *options))
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_and_checkpointed_it_is_the_same():
    # Another operator's shapes would make this one's dynamic.
    torch.compiler.reset()
    case, bonus, gs = bonus_case((2, 35, 2, 24))
    given = {**case.inputs, "bonus": bonus}
    leaves = {name: x.float().requires_grad_() for name, x in given.items()}

    def loss(*tensors: Tensor) -> Tensor:
        y, s, _ = call(case, dict(zip(leaves, tensors)), "native")
        return (y * case.gy.float()).sum() + (s * gs.float()).sum()

    values = list(leaves.values())
    compiled_loss = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*values), values)
    for other in (compiled_loss, lambda *x: checkpoint(loss, *x, use_reentrant=False)):
        gradients = torch.autograd.grad(other(*values), values)
        assert all(torch.equal(one, two) for one, two in zip(gradients, expected))


def test_a_bonus_of_another_shape_is_named_with_what_was_expected():
    case, bonus, _ = bonus_case((1, 3, 2, 4))
    with pytest.raises(BackendError, match=r"bonus has shape \[8\], expected \[2, 4\]"):
        call(case, {**case.inputs, "bonus": bonus.flatten()}, "reference")
