"""A slice of logits by the native kernels: exactness, edges, order of sums, and what is moved."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_train.ops import head_loss as module
from rwkv_train.ops.head_loss import Targets, head_loss, head_token_losses, native, reference
from tests.cuda.head_loss_problems import Slice, expected_slice_results, make_slice, rounded_slice
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import require_kernel

BACKENDS = {"native": native, "reference": reference}
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> str:
    if request.param == "native":
        require_native()
    return request.param


def require_native() -> None:
    require_kernel("head_loss")
    # the first call registers the operators with torch
    head_token_losses(torch.ones(1, 1, 1), torch.ones(1, 1), torch.zeros(1, 1).long())


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element that nothing writes cannot hide."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def slice_results(backend: str, given: Slice, dtype: torch.dtype, extra: torch.dtype | None = None):
    """What `expected_slice_results` gives, by a backend, for logits and gradient in `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = given.logits.to(dtype, copy=True)
    losses = torch.empty(len(given.targets), dtype=wide)
    mask = None if given.mask is None else given.mask.to(wide)
    more = None if given.extra is None else given.extra.to(extra or dtype)
    extra_gradient = None if more is None else torch.empty_like(more)
    run = BACKENDS[backend].run
    gradient = run("rows", logits, given.targets, mask, more, extra_gradient, losses, dtype)
    found = {"gradient": gradient, "losses": losses}
    if extra_gradient is not None:
        found["extra_gradient"] = extra_gradient
    found["loss"], found["total"] = run("mean", losses, mask, None)
    return found


@pytest.mark.parametrize("dtype", [*LIMIT, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 2, 17, 1023, 1024, 1025, 5000])
def test_losses_and_gradients_are_exact_and_rounded_once(backend, vocabulary, dtype):
    given = rounded_slice(make_slice(5, vocabulary, seed=vocabulary), dtype, dtype)
    found = slice_results(backend, given, dtype)
    expected = expected_slice_results(given)
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        kind = found[name].dtype
        assert_close(name, found[name], exact, LIMIT.get(kind, allowed_error(exact, kind)))


def test_extra_logits_and_their_gradient_keep_a_dtype_of_their_own(backend):
    given = rounded_slice(make_slice(3, 300), torch.bfloat16, torch.float32)
    found = slice_results(backend, given, torch.bfloat16, torch.float32)
    exact = expected_slice_results(given)
    assert_close("extra", found["extra_gradient"], exact["extra_gradient"], 1e-6)


def test_of_equal_largest_logits_the_first_is_wrapped(backend):
    logits = torch.zeros(1, 5000, dtype=torch.float64)
    logits[0, [1030, 1031, 4000]] = 50
    given = Slice(logits, torch.tensor([4000]), None, None)
    gradient = slice_results(backend, given, torch.float64)["gradient"][0]
    assert (gradient[1030] - gradient[1031]).item() == pytest.approx(50e-4, rel=1e-12)


def test_huge_logits_and_absent_ones_give_finite_numbers(backend):
    logits = make_slice(2, 300).logits * 1e4
    logits[:, 10:280] = -torch.inf
    logits[0, 290] = 3e38
    given = Slice(logits.float().double(), torch.tensor([290, 3]), None, None)
    found, expected = slice_results(backend, given, torch.float32), expected_slice_results(given)
    for name, exact in expected.items():
        assert_close(name, found[name], exact, 1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_logit_that_is_no_number_reaches_the_loss(backend, value):
    given = make_slice(2, 1500)
    given.logits[1, 1400] = value
    found = slice_results(backend, given, torch.float32)
    assert found["losses"].isfinite().tolist() == [True, False] and found["loss"].isnan()


def test_tokens_without_weight_get_exact_zeros(backend):
    given = make_slice(4, 900)._replace(mask=torch.tensor([0.0, 1, 0, 0.5]).double())
    found = slice_results(backend, given, torch.float32)
    assert found["gradient"].ne(0).any(1).tolist() == [False, True, False, True]
    losses = found["losses"].double()
    mean = (losses[1] + losses[3] / 2).item() / 1.5
    assert found["loss"].item() == pytest.approx(mean, rel=1e-7) and found["total"] == 1.5


def test_without_any_weight_the_mean_is_zero(backend):
    run, losses = BACKENDS[backend].run, torch.tensor([3.0, 4.0])
    assert [x.item() for x in run("mean", losses, torch.zeros(2), None)] == [0, 1]
    assert [x.item() for x in run("mean", losses, torch.tensor([0.5, 1]), 4.0)] == [1.375, 4]
    assert [x.item() for x in run("mean", losses, None, None)] == [3.5, 2]


def test_the_number_of_threads_and_of_rows_in_a_slice_changes_no_bit():
    require_native()
    given = make_slice(200, 1100)
    one = slice_results("native", given, torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = slice_results("native", given, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], two[name]) for name in one)
    x, weight = torch.randn(1, 200, 8), torch.randn(500, 8)
    targets = [Targets(given.targets[None] % 500, rows=rows) for rows in (7, 200)]
    losses = [head_loss(x, weight, each, backend="native") for each in targets]
    assert torch.equal(*losses)


def test_a_mean_over_many_tokens_loses_no_digits():
    require_native()
    losses = torch.rand(100_001)
    loss, total = native.run("mean", losses, None, None)
    assert loss.item() == (losses.double().sum() / 100_001).float().item()
    assert total == 100_001


@pytest.mark.parametrize("options", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_ops_pass_opcheck(options, dtype):
    require_native()
    given = make_slice(3, 40, options=options)
    logits, losses = given.logits.to(dtype), torch.zeros(3)
    mask = given.mask.float() if options else None
    extra = given.extra.to(dtype) if options else None
    room = torch.zeros_like(extra) if options else None
    arguments = (logits, given.targets, mask, extra, room, losses, dtype, True)
    for op, given_to_it in (("rows_", arguments), ("mean", (losses, mask, None))):
        found = opcheck(getattr(torch.ops.rwkv, f"head_loss_{op}"), given_to_it)
        assert set(found.values()) == {"SUCCESS"}


def test_a_target_that_is_no_token_is_refused_by_the_kernel():
    require_native()
    given = make_slice(2, 9)._replace(targets=torch.tensor([0, 9]))
    with pytest.raises(RuntimeError, match=r"targets hold 9, expected 0 \.\. 8"):
        slice_results("native", given, torch.float32)


class MovedElements(TorchDispatchMode):
    """Adds up the elements that operators read and write, products and new memory left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if not any(word in name for word in ("mm", "empty")) and not func.is_view:
            written = [a for a, s in zip(args, func._schema.arguments) if _is_written(s)]
            # an operator in place reads what it writes
            touched = tree_leaves((args, kwargs, written, [] if written else result))
            self.count += sum(x.numel() for x in touched if isinstance(x, torch.Tensor))
        return result


def _is_written(argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def moved_per_logit(dtype: torch.dtype, backend: str) -> float:
    """Elements moved for every logit by a call and its backward pass, products left out."""
    tokens, vocabulary = 512, 3000
    x = torch.randn(1, tokens, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, 4, dtype=dtype, requires_grad=True)
    targets = Targets(torch.randint(vocabulary, (1, tokens)), torch.rand(1, tokens))
    head_loss(x, weight, targets, backend=backend)
    with MovedElements() as moved:
        head_loss(x, weight, targets, backend=backend).backward()
    return moved.count / (tokens * vocabulary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_read_and_replaced_by_their_gradient_and_touched_no_more(dtype):
    require_native()
    torch.use_deterministic_algorithms(False)  # which would fill every new tensor
    assert 2 <= moved_per_logit(dtype, "native") <= 2.2
    assert moved_per_logit(dtype, "reference") > 10
    torch.use_deterministic_algorithms(True)


def test_losses_alone_leave_the_logits_as_they_are(backend):
    given = make_slice(2, 1500, options=False)
    logits, losses = given.logits.float(), torch.empty(2)
    BACKENDS[backend].run("rows", logits, given.targets, None, None, None, losses, None)
    exact = expected_slice_results(given)["losses"]
    assert_close("losses", losses, exact, 1e-5)
    if backend == "native":
        assert torch.equal(logits, given.logits.float())


@pytest.mark.parametrize(
    ("vocabulary", "width", "dtype", "rows"),
    [
        # 512 MiB hold 4096 rows of 65536 bf16 logits and 2048 in fp32
        (65536, 768, torch.bfloat16, 3072),
        (65536, 768, torch.float32, 2048),
        (65536, 4096, torch.bfloat16, 4096),
        # 64 MiB are enough where that is more than 4 widths
        (4096, 768, torch.bfloat16, 8192),
    ],
)
def test_a_slice_has_four_rows_for_each_column_of_a_weight_that_learns(
    vocabulary, width, dtype, rows
):
    x = torch.empty(8, 2048, width, dtype=dtype, device="meta")
    weight = torch.empty(vocabulary, width, dtype=dtype, device="meta", requires_grad=True)
    assert module._rows(x, weight, None, dtype, "cpu") == rows
    frozen = weight.detach()
    assert module._rows(x, frozen, None, dtype, "cpu") * vocabulary * dtype.itemsize == 64 * 2**20


def test_the_division_by_the_total_rounds_once():
    # 1 / 3 rounded to bf16 first would be off by 1.3e-3
    x = torch.randn(1, 3, 64).bfloat16().requires_grad_()
    weight = torch.randn(50, 64).bfloat16()
    targets = Targets(torch.tensor([[1, 2, 3]]))
    (gradient,) = torch.autograd.grad(head_loss(x, weight, targets), x)
    (times_three,) = torch.autograd.grad(head_loss(x, weight, targets._replace(total=1.0)), x)
    exact = times_three.double() / 3
    assert_close("gx", gradient, exact, allowed_error(exact, torch.bfloat16) - 1e-5 + 1e-7)
