"""Head and loss in slices: against numbers by hand, against all logits at once, and memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_train.errors import BackendError
from rwkv_train.ops import head_loss as module
from rwkv_train.ops.head_loss import Targets, sliced
from rwkv_train.ops.head_loss.reference import head_loss_reference
from tests.helpers import relative_rms

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, TIME, WIDTH, VOCAB = 2, 7, 5, 11
BATCH_TIME = BATCH * TIME


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs():
    """x [B, T, C], weight [V, C] and extra logits as leaves, and targets, in fp64."""
    x, weight = normal(BATCH, TIME, WIDTH, seed=1), normal(VOCAB, WIDTH, seed=2)
    extra = normal(BATCH, TIME, VOCAB, seed=3)
    targets = torch.randint(VOCAB, (BATCH, TIME), generator=torch.Generator().manual_seed(4))
    return x.requires_grad_(), weight.requires_grad_(), extra.requires_grad_(), targets


def loss_of(x, weight, ids, *, extra_logits=None, recomputed=False, backend="auto", **targets):
    """Calls `head_loss` with the fields of its targets (mask, total, rows) as keywords."""
    options = {"extra_logits": extra_logits, "recomputed": recomputed, "backend": backend}
    return module.head_loss(x, weight, Targets(ids, **targets), **options)


MASKS = {
    "none": None,
    "bool": torch.arange(BATCH_TIME).view(BATCH, TIME) % 3 == 0,
    "weights": (torch.arange(BATCH_TIME).view(BATCH, TIME) % 4).double(),
}


@pytest.mark.parametrize("rows", [None, 1, 3, 13, 14, 1000])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_slices_equal_all_logits_at_once(backend, rows, mask, with_extra):
    x, weight, extra, targets = inputs()
    given = {"mask": MASKS[mask], "extra_logits": extra if with_extra else None}
    leaves = (x, weight, extra) if with_extra else (x, weight)
    loss = loss_of(x, weight, targets, rows=rows, backend=backend, **given)
    expected = head_loss_reference(x, weight, targets, **given)
    assert loss.shape == () and abs(loss.item() - expected.item()) < 1e-12
    # a factor that stands for loss scaling or accumulation reaches every term
    actual = torch.autograd.grad(loss * 3, leaves)
    for gradient, right in zip(actual, torch.autograd.grad(expected * 3, leaves)):
        assert relative_rms(gradient, right) < 1e-12


def test_the_loss_and_its_gradient_are_those_worked_out_by_hand():
    # One token, C = V = 2, logits (ln 3, 0): probabilities 3/4 and 1/4, target the second.
    x = torch.tensor([[[math.log(3.0), 0.0]]], dtype=torch.float64, requires_grad=True)
    weight = torch.eye(2, dtype=torch.float64, requires_grad=True)
    loss = loss_of(x, weight, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(math.log(4.0), abs=1e-15)
    loss.backward()
    # softmax minus the target, plus 1e-4 times the largest logit at its place
    expected = torch.tensor([0.75 + 1e-4 * math.log(3.0), -0.75], dtype=torch.float64)
    torch.testing.assert_close(x.grad[0, 0], expected, rtol=0, atol=1e-15)
    outer = torch.outer(expected, x.detach()[0, 0])
    torch.testing.assert_close(weight.grad, outer, rtol=0, atol=1e-15)


def test_the_mean_is_over_tokens_and_the_wrap_is_divided_by_their_number():
    # Two tokens with equal logits (0, 2): cross entropies ln(1 + e^2) and ln(1 + e^2) - 2.
    x = torch.tensor([[[0.0, 2.0], [0.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    weight = torch.eye(2, dtype=torch.float64)
    loss = loss_of(x, weight, torch.tensor([[0, 1]]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.0)) - 1.0, abs=1e-14)
    loss.backward()
    p = 1 / (1 + math.exp(2.0))
    wrap = 1e-4 / 2 * 2.0
    expected = [[(p - 1) / 2, (1 - p) / 2 + wrap], [p / 2, -p / 2 + wrap]]
    torch.testing.assert_close(x.grad[0], torch.tensor(expected, dtype=torch.float64))


def test_only_the_first_of_equal_largest_logits_is_pulled_down():
    x = torch.tensor([[[1.0, 3.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    weight = torch.eye(3, dtype=torch.float64)
    loss_of(x, weight, torch.tensor([[0]])).backward()
    second, third = x.grad[0, 0, 1].item(), x.grad[0, 0, 2].item()
    assert second - third == pytest.approx(1e-4 * 3.0, abs=1e-15)


def test_the_wrap_is_invisible_in_the_loss():
    x, weight, _, targets = inputs()
    mask = torch.zeros(BATCH, TIME)
    mask[0, 0] = 1
    loss = loss_of(x, weight, targets, mask=mask)
    first = torch.log_softmax(x[0, 0] @ weight.T, 0)[targets[0, 0]]
    assert loss.item() == pytest.approx(-first.item(), abs=1e-12)


def test_tokens_without_weight_are_not_wrapped_either():
    x, weight, _, targets = inputs()
    mask = torch.zeros(BATCH, TIME)
    mask[0, 0] = 1
    loss_of(x, weight, targets, mask=mask).backward()
    logits = (x[0, 0] @ weight.T).detach()
    error = logits.softmax(0)
    error[targets[0, 0]] -= 1
    error[logits.argmax()] += 1e-4 * logits.max()
    torch.testing.assert_close(x.grad[0, 0], error @ weight.detach(), rtol=1e-12, atol=0)
    assert x.grad[0, 1:].count_nonzero() == 0 and x.grad[1].count_nonzero() == 0


def test_a_mask_of_zeros_gives_loss_zero_and_gradients_of_zero():
    x, weight, _, targets = inputs()
    loss = loss_of(x, weight, targets, mask=torch.zeros(BATCH, TIME))
    assert loss.item() == 0
    loss.backward()
    assert x.grad.count_nonzero() == 0 and weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("mask", MASKS)
def test_calls_with_parts_of_the_tokens_and_one_total_add_up_to_the_whole(mask):
    x, weight, _, targets = inputs()
    given = MASKS[mask]
    total = float(BATCH_TIME if given is None else given.sum())
    whole = loss_of(x, weight, targets, mask=given)
    parts = [
        loss_of(
            x[:, part],
            weight,
            targets[:, part],
            total=total,
            mask=None if given is None else given[:, part],
        )
        for part in (slice(0, 2), slice(2, 3), slice(3, TIME))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-14)
    expected = torch.autograd.grad(whole, (x, weight))
    for gradient, right in zip(torch.autograd.grad(sum(parts), (x, weight)), expected):
        assert relative_rms(gradient, right) < 1e-14


@pytest.mark.parametrize("total", [0.0, -1.0, math.nan])
def test_a_total_that_cannot_divide_is_refused(total):
    x, weight, _, targets = inputs()
    with pytest.raises(BackendError, match="total"):
        loss_of(x, weight, targets, total=total)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_usual_one(frozen):
    x, weight, _, targets = inputs()
    expected = torch.autograd.grad(loss_of(x, weight, targets), (x, weight))
    if frozen == "x":
        loss_of(x.detach(), weight, targets).backward()
        assert x.grad is None and torch.equal(weight.grad, expected[1])
    else:
        loss_of(x, weight.detach(), targets).backward()
        assert weight.grad is None and torch.equal(x.grad, expected[0])


def test_without_gradients_only_the_loss_is_computed():
    x, weight, _, targets = inputs()
    expected = loss_of(x, weight, targets).item()
    with torch.no_grad():
        loss = loss_of(x, weight, targets, rows=3)
    assert not loss.requires_grad and loss.item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("mask", MASKS)
def test_a_call_that_will_be_repeated_computes_the_loss_alone(mask, monkeypatch):
    x, weight, extra, targets = inputs()
    given = {"mask": MASKS[mask], "extra_logits": extra, "rows": 3}
    expected = loss_of(x, weight, targets, **given)
    saved = []

    def note(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(x, weight, targets, **given)
        usual, saved[:] = saved[:], []
        with monkeypatch.context() as patch:
            patch.setattr(sliced, "_add_gradients", None)
            loss = loss_of(x, weight, targets, recomputed=True, **given)
    assert torch.equal(loss, expected)
    # what checkpointing compares, in no memory
    assert [(t.shape, t.dtype) for t in saved] == [(t.shape, t.dtype) for t in usual]
    assert sum(t.untyped_storage().nbytes() for t in saved) == 4 * 8
    # never a wrong number in place of a gradient
    assert all(g.isnan().all() for g in torch.autograd.grad(loss, (x, weight, extra)))


def test_a_second_backward_gives_the_same_gradients():
    x, weight, _, targets = inputs()
    loss = loss_of(x, weight, targets)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operator returns."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("with_mask", [False, True])
def test_it_never_holds_more_than_one_slice_of_logits(with_mask):
    batch, time, width, vocab, rows = 4, 256, 4, 1000, 32
    x, weight = torch.randn(batch, time, width), torch.randn(vocab, width)
    x.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(vocab, (batch, time))
    mask = torch.rand(batch, time) if with_mask else None
    with LargestTensor() as record:
        loss_of(x, weight, targets, rows=rows, mask=mask).backward()
    assert record.numbers <= rows * vocab
    with LargestTensor() as record:
        head_loss_reference(x, weight, targets, mask=mask).backward()
    assert record.numbers >= batch * time * vocab


def test_a_slice_takes_about_64_mib_unless_rows_are_given(monkeypatch):
    seen = []

    class Spy:
        @staticmethod
        def apply(x, weight, targets, mask, extra, plan):
            seen.append(plan.rows)

    monkeypatch.setattr(module, "SlicedHeadLoss", Spy)
    x, targets = torch.zeros(2, 4096, 1), torch.zeros(2, 4096, dtype=torch.int64)
    loss_of(x, torch.zeros(65536, 1), targets)
    loss_of(x, torch.zeros(100, 1), targets)
    loss_of(x, torch.zeros(100, 1), targets, rows=77)
    # 256 rows of 65536 fp32 logits are 64 MiB; 100 logits a token fit all 8192 tokens
    assert seen == [256, 8192, 77]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 9),
    width=st.integers(1, 6),
    vocab=st.integers(1, 20),
    rows=st.integers(1, 30),
    scale=st.floats(0, 300),
    seed=st.integers(0, 100),
)
def test_any_shape_and_any_size_of_logits_agree(batch, time, width, vocab, rows, scale, seed):
    x = (normal(batch, time, width, seed=seed) * scale).requires_grad_()
    weight = normal(vocab, width, seed=seed + 1).requires_grad_()
    targets = torch.randint(vocab, (batch, time), generator=torch.Generator().manual_seed(seed + 2))
    loss = loss_of(x, weight, targets, rows=rows)
    expected = head_loss_reference(x, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-11)
    for gradient, right in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(expected, (x, weight))
    ):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-11)


def test_gradients_pass_torchs_own_check_apart_from_the_wrap():
    x, weight, extra, targets = inputs()

    def function(x, weight, extra):
        mask = MASKS["weights"]
        return loss_of(x, weight, targets, extra_logits=extra, mask=mask, rows=4)

    # Numerical differences of the loss do not see the wrap, at most 1e-4 / 14 * 6 * 3 here.
    assert torch.autograd.gradcheck(function, (x, weight, extra), atol=3e-4, rtol=0)
