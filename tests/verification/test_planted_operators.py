"""A fault of a kernel is found, and named: which operator, by whom, in which of its results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rwkv_train.ops.embedding_norm import native as embedding_native
from rwkv_train.ops.head_loss import native as loss_native
from rwkv_train.ops.head_loss import reference as loss_reference
from rwkv_train.ops.head_loss import sliced
from rwkv_train.ops.keys import native as keys_native
from rwkv_train.ops.norm_shift import native as norm_native
from rwkv_train.ops.pieces import chunked as pieces_chunked
from rwkv_train.ops.squared_relu import reference as relu_reference
from rwkv_train.ops.wkv5 import native as wkv5_native
from rwkv_train.ops.wkv6 import native as wkv6_native
from rwkv_train.ops.wkv7 import chunked as wkv7_chunked
from rwkv_train.verification.check_operators import STORED, check_operator
from rwkv_train.verification.golden_file import golden
from tests.ops.native_cases import require_kernel
from tests.verification.planted_faults import (
    change_run,
    every_other_time_larger,
    gradient,
    with_input,
    with_result,
)

CPU = torch.device("cpu")


@pytest.fixture
def wrong(one_thread: None) -> Callable[[str], dict[str, set[str]]]:
    """Verifies one operator quickly; returns for every backend which results are wrong."""

    def check(op: str) -> dict[str, set[str]]:
        part = check_operator(op, CPU, golden()["operators"][op], quick=True)
        found: dict[str, set[str]] = {}
        for finding in part.findings:
            if not finding.is_right:
                found.setdefault(finding.backend, set()).add(finding.result)
        return found

    return check


def test_a_gradient_with_the_wrong_sign(wrong, monkeypatch):
    require_kernel("wkv6")
    change_run(monkeypatch, wkv6_native, with_input(1, gradient(torch.neg)))
    assert wrong("wkv6") == {"native": {"gk"}}


def test_a_final_state_that_is_transposed(wrong, monkeypatch):
    require_kernel("wkv5")
    change_run(monkeypatch, wkv5_native, with_result(1, lambda s: s.transpose(2, 3)))
    assert wrong("wkv5") == {"native": {"final state", *(f"g{n}" for n in (*"kvw", "state"))}}


def test_a_final_state_that_is_returned_without_its_gradient(wrong, monkeypatch):
    require_kernel("wkv5")
    change_run(monkeypatch, wkv5_native, with_result(1, gradient(torch.zeros_like)))
    assert wrong("wkv5") == {"native": {f"g{n}" for n in (*"kvw", "state")}}


def test_a_transition_of_a_piece_that_is_transposed(wrong, monkeypatch):
    forms = pieces_chunked._FORMS
    form = forms["wkv7_piece"]

    def transposed(*arguments):
        transition, contribution = form(*arguments)
        return transition.mT, contribution

    monkeypatch.setitem(forms, "wkv7_piece", transposed)
    assert wrong("pieces") == {"chunked": {"wkv7 transition"}}


def test_a_wrong_constant(wrong, monkeypatch):
    monkeypatch.setattr(wkv7_chunked, "LARGEST_RATE", wkv7_chunked.LARGEST_RATE * 1.001)
    found = wrong("wkv7")
    assert set(found) == {"chunked"}
    # all but the bonus, which knows no decay
    assert {"y", "final state", "gw", "gbase"} <= found["chunked"] and "s" not in found["chunked"]


def test_documents_whose_start_is_not_seen(wrong, monkeypatch):
    require_kernel("wkv6")
    reset = 7
    change_run(monkeypatch, wkv6_native, with_input(reset, lambda flags: None))
    assert "y" in wrong("wkv6")["native"]


def test_a_token_shift_that_forgets_the_token_before_the_first(wrong, monkeypatch):
    require_kernel("norm_shift")
    last = 6
    change_run(monkeypatch, norm_native, with_input(last, lambda x: x.roll(1, -1)))
    found = wrong("norm_shift")
    assert set(found) == {"native"}
    assert {"y0", "y5", "glast", "gmixes"} <= found["native"]
    assert not found["native"] & {"stream", "h_last"}


def test_sums_that_are_kept_in_16_bits(wrong, monkeypatch):
    require_kernel("keys")
    base = 2
    narrow = gradient(lambda grad: grad.bfloat16().to(grad.dtype))
    change_run(monkeypatch, keys_native, with_input(base, narrow))
    assert wrong("keys") == {"native": {"gbase"}}


def test_a_gradient_that_differs_from_call_to_call(wrong, monkeypatch):
    require_kernel("embedding_norm")
    table = 1
    change_run(
        monkeypatch, embedding_native, with_input(table, gradient(every_other_time_larger()))
    )
    assert wrong("embedding_norm") == {"native": {"gtable, repeated"}}


def test_a_loss_without_its_wrap(wrong, monkeypatch):
    require_kernel("head_loss")
    rows = loss_native._STEPS["rows"]

    def without_wrap(logits, targets, mask, extra, extra_gradient, losses, kind):
        whole = logits.double() if extra is None else logits.double() + extra
        largest, place = whole.max(1, keepdim=True)
        wrap = largest * loss_reference.L2WRAP
        wrap = wrap if mask is None else wrap * mask[:, None]
        found = rows(logits, targets, mask, extra, extra_gradient, losses, kind)
        for part in (found, extra_gradient):
            if kind is not None and part is not None:
                part.scatter_add_(1, place, -wrap.to(part.dtype))
        return found

    monkeypatch.setitem(loss_native._STEPS, "rows", without_wrap)
    found = wrong("head_loss")
    assert set(found) == {"native"}
    assert {"gx", "gweight"} <= found["native"] and "loss" not in found["native"]


def test_a_slice_of_the_softmax_that_is_dropped(wrong, monkeypatch):
    add = sliced._add_gradients

    def drops_the_second(grads, part, *others):
        if part.start != 64:
            add(grads, part, *others)

    monkeypatch.setattr(sliced, "_add_gradients", drops_the_second)
    found = wrong("head_loss")
    assert {"gx", "gweight"} <= found["reference"] and "loss" not in found["reference"]
    # what gives the truth has no slices
    assert STORED not in found


def test_a_reference_that_is_wrong_itself(wrong, monkeypatch):
    def wrong_activation(p):
        return torch.relu(p) ** 2 * (1 + 1e-7)

    monkeypatch.setattr(relu_reference, "run", wrong_activation)
    assert {"z", "gp"} <= wrong("squared_relu")[STORED]


def test_numbers_that_nothing_has_written(wrong, monkeypatch):
    require_kernel("keys")

    def unwritten(k):
        k = k.clone()
        k[0, -1, -1, -1] = torch.empty(())
        return k

    change_run(monkeypatch, keys_native, with_result(0, unwritten))
    assert "k" in wrong("keys")["native"]


def test_a_kernel_that_raises(wrong, monkeypatch):
    require_kernel("keys")

    def fails(*arguments):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(keys_native, "run", fails)
    assert wrong("keys") == {"native": {"the call"}}
