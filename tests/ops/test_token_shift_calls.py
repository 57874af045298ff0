"""The token shift as a caller meets it: wrong arguments, and GPUs that its kernels cannot serve."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import dispatch
from rwkv_train.ops.backends.dispatch import Call
from rwkv_train.ops.native import build, custom_ops
from rwkv_train.ops.token_shift import BACKENDS, token_shift
from tests.ops.test_token_shift import require_native


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"mixes": torch.ones(2, 4)}, "mixes has shape [2, 4], expected [2, 3]"),
        ({"mixes": torch.ones(9, 3)}, "mixes has shape [9, 3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": torch.ones(0, 3)}, "mixes has shape [0, 3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": torch.ones(3)}, "mixes has shape [3], expected [n, 3] with n from 1 to 8"),
        ({"mixes": None}, "mixes is NoneType, expected [n, 3] with n from 1 to 8"),
        ({"last": torch.ones(3)}, "last has shape [3], expected [2, 3]"),
        ({"moves": torch.ones(1, 2, 5, 3)}, "moves has shape [1, 2, 5, 3], expected [2, 2, 5, 3]"),
        ({"dtype": torch.float64}, "dtype is torch.float64, expected float32"),
        ({"reset": torch.ones(2, 5)}, "reset is torch.float32 [2, 5], expected a bool tensor"),
        ({"backend": "chunked"}, "unknown backend 'chunked'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(changed, message):
    arguments = {"x": torch.ones(2, 5, 3), "mixes": torch.ones(2, 3)} | changed
    with pytest.raises(BackendError) as error:
        token_shift(**arguments)
    assert message in str(error.value)


@pytest.fixture
def a_gpu_call(monkeypatch) -> Call:
    """A call on a made-up card, by a process that has refused nothing yet."""
    require_native()
    monkeypatch.setattr(custom_ops, "_refusals", {})
    monkeypatch.setattr(dispatch, "_announced", set())
    monkeypatch.setattr(build, "_outcomes", {("token_shift", "cuda"): "nvcc is missing"})
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(
            name="Made-up 9000", major=9, minor=0, shared_memory_per_block_optin=227 * 1024
        ),
    )
    return Call(
        op="token_shift",
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
    "dtype, reason", [(torch.bfloat16, "nvcc is missing"), (torch.float64, "not torch.float64")]
)
def test_a_gpu_that_its_kernels_cannot_serve_gets_the_reference_and_is_told_once(
    a_gpu_call, caplog, dtype, reason
):
    call = a_gpu_call._replace(dtype=dtype)
    for _ in range(2):
        assert BACKENDS[dispatch.choose(BACKENDS, "auto", call)].name == "reference"
    (message,) = [record.getMessage() for record in caplog.records]
    assert reason in message and "'reference' serves instead" in message
    with pytest.raises(BackendError, match=reason):
        dispatch.choose(BACKENDS, "native", call)


def test_a_gpu_gets_its_kernels_for_any_width(a_gpu_call, monkeypatch):
    monkeypatch.setattr(build, "_outcomes", {("token_shift", "cuda"): None})
    call = a_gpu_call._replace(heads=7)
    assert BACKENDS[dispatch.choose(BACKENDS, "auto", call)].name == "native"
