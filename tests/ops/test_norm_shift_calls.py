"""The norm with shift as a caller meets it: wrong arguments, and GPUs that it cannot serve."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import dispatch
from rwkv_train.ops.backends.dispatch import Call
from rwkv_train.ops.native import build, custom_ops
from rwkv_train.ops.norm_shift import BACKENDS, moved_shift, native, norm_shift
from tests.ops.test_norm_shift import require_native


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"mixes": torch.ones(2, 4)}, "mixes has shape [2, 4], expected [2, 3]"),
        ({"mixes": torch.ones(9, 3)}, "mixes has shape [9, 3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": torch.ones(0, 3)}, "mixes has shape [0, 3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": torch.ones(3)}, "mixes has shape [3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": [0.5]}, "mixes is list, expected [n, 3] with n from 1 to 8"),
        ({"backend": "chunked"}, "unknown backend 'chunked'"),
        ({"weight": torch.ones(4)}, "weight has shape [4], expected [3]"),
        ({"last": torch.ones(3)}, "last has shape [3], expected [2, 3]"),
        ({"gate": torch.ones(2, 5, 3)}, "a gate is given, but no out"),
        ({"out": torch.ones(2, 5)}, "out has shape [2, 5], expected [2, 5, 3]"),
        ({"dtype": torch.float64}, "dtype is torch.float64, expected torch.float32, as x"),
        ({"reset": torch.ones(2, 5)}, "reset is torch.float32 [2, 5], expected a bool tensor"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(changed, message):
    arguments = {"x": torch.ones(2, 5, 3), "weight": torch.ones(3), "bias": torch.ones(3)}
    with pytest.raises(BackendError) as error:
        norm_shift(**(arguments | changed))
    assert message in str(error.value)


def test_moves_that_do_not_fit_are_named_with_what_was_expected():
    found = norm_shift(torch.ones(2, 5, 3), torch.ones(3), torch.ones(3), backend="reference")
    message = r"moves has shape \[1, 2, 5, 3\], expected \[2, 2, 5, 3\]"
    with pytest.raises(BackendError, match=message):
        moved_shift(found.normal, torch.ones(2, 3), torch.ones(1, 2, 5, 3))


def test_gradients_of_gradients_are_refused_by_name():
    require_native()
    x, weight = torch.randn(1, 3, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    y = norm_shift(x, weight, torch.zeros(2), backend="native").mixed[0]
    (once,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(BackendError, match=r"norm_shift: .* gradients once, .* 'reference'"):
        torch.autograd.grad(once.sum(), weight)


@pytest.fixture
def a_gpu_call(monkeypatch) -> Call:
    """A call on a made-up card, by a process that has refused nothing yet."""
    require_native()
    monkeypatch.setattr(custom_ops, "_refusals", {})
    monkeypatch.setattr(dispatch, "_announced", set())
    monkeypatch.setattr(build, "_outcomes", {("norm_shift", "cuda"): "nvcc is missing"})
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(
            name="Made-up 9000", major=9, minor=0, shared_memory_per_block_optin=227 * 1024
        ),
    )
    return Call(
        op="norm_shift",
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        batch=1,
        time=1,
        heads=48,
        head_size=1,
        needs_grad=True,
        has_state=False,
        has_reset=False,
    )


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({}, "nvcc is missing"),
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"heads": 4104}, "serve widths up to 4096, or 512 .*, not 4104"),
        ({"heads": 513}, "serve widths up to 4096, or 512 .*, not 513"),
    ],
)
def test_a_gpu_that_its_kernels_cannot_serve_gets_the_reference_and_is_told_once(
    a_gpu_call, caplog, changed, reason
):
    call = a_gpu_call._replace(**changed)
    for _ in range(2):
        assert BACKENDS[dispatch.choose(BACKENDS, "auto", call)].name == "reference"
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search(reason, message) and "'reference' serves instead" in message
    with pytest.raises(BackendError, match=reason):
        dispatch.choose(BACKENDS, "native", call)


@pytest.mark.parametrize("width", [7, 4096])
def test_a_gpu_gets_its_kernels_for_the_widths_that_they_serve(a_gpu_call, monkeypatch, width):
    monkeypatch.setattr(build, "_outcomes", {("norm_shift", "cuda"): None})
    call = a_gpu_call._replace(heads=width)
    assert BACKENDS[dispatch.choose(BACKENDS, "auto", call)].name == "native"


@pytest.mark.parametrize(
    ("card_kib", "width", "lacks"), [(99, 2048, 0), (99, 2056, 160), (163, 4096, 0)]
)
def test_wide_tokens_need_a_card_with_memory_for_their_sums(
    a_gpu_call, monkeypatch, card_kib, width, lacks
):
    card = SimpleNamespace(
        name="Card", major=9, minor=0, shared_memory_per_block_optin=card_kib * 1024
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(native, "refusal", lambda *_: None)
    reason = native.refuses(a_gpu_call._replace(heads=width))
    assert (reason is None) == (not lacks)
    assert reason is None or f"needs {lacks} KiB of shared memory a block" in reason
