"""The choice of a backend: named, automatic, announced once, and traced by torch.compile."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from rwkv_train.config import choices
from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import dispatch
from rwkv_train.ops.backends.dispatch import Backend, Call, Refusal, choose
from rwkv_train.ops.native.custom_ops import KERNELS
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv6 import BACKENDS, wkv6
from tests.checkout import ROOT
from tests.ops.native_cases import OPS, call, make_case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh_memory(monkeypatch):
    """No reason counts as announced and no module as imported before a test."""
    monkeypatch.setattr(dispatch, "_announced", set())
    monkeypatch.setattr(dispatch, "_modules", dict(dispatch._modules))


def a_call(**changes) -> Call:
    discovered = {
        "op": "wkv6",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "batch": 1,
        "time": 4,
        "heads": 2,
        "head_size": 64,
        "needs_grad": True,
        "has_state": False,
        "has_reset": False,
    }
    return Call(**(discovered | changes))


def backend(name: str, reason=None) -> Backend:
    """A backend that exists in memory only and refuses with `reason`, or with what that returns."""
    refuses = reason if callable(reason) else lambda call: reason
    dispatch._modules[f"fake.{name}"] = [SimpleNamespace(refuses=refuses, run=lambda: name)]
    return Backend(name, f"fake.{name}")


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_takes_the_first_that_accepts_and_says_nothing(caplog):
    assert choose((backend("fast"), backend("slow")), "auto", a_call()) == 0
    assert warnings_of(caplog) == []


def test_auto_steps_down_with_one_warning_that_names_the_reason(caplog):
    backends = (backend("fast", "needs a C++ compiler; install g++"), backend("slow"))
    for _ in range(3):
        assert choose(backends, "auto", a_call()) == 1
    (message,) = warnings_of(caplog)
    assert message == (
        "wkv6: backend 'fast' is not used: needs a C++ compiler; install g++; 'slow' serves instead"
    )


def test_each_operator_and_each_reason_is_announced_once(caplog):
    reasons = iter(["no compiler", "no ninja", "no compiler", "no compiler"])
    backends = (backend("fast", lambda call: next(reasons)), backend("slow"))
    for op in ("wkv6", "wkv6", "wkv6", "wkv5"):
        choose(backends, "auto", a_call(op=op))
    assert len(warnings_of(caplog)) == 3


def test_reasons_of_one_kind_are_announced_once(caplog):
    numbers = iter(range(9))
    backends = (
        backend("fast", lambda call: Refusal(f"failed, log {next(numbers)}", kind="compiler")),
        backend("slow"),
    )
    for _ in range(3):
        choose(backends, "auto", a_call())
    assert len(warnings_of(caplog)) == 1


def test_a_reason_that_is_no_news_is_not_announced(caplog):
    backends = (backend("fast", Refusal("serves CUDA only", news=False)), backend("slow"))
    assert choose(backends, "auto", a_call()) == 1
    assert warnings_of(caplog) == []


def test_a_backend_that_is_not_built_in_is_passed_over_in_silence(caplog):
    backends = (Backend("native", "rwkv_train.ops.wkv6.no_such_file"), backend("slow"))
    assert choose(backends, "auto", a_call()) == 1
    assert warnings_of(caplog) == []
    with pytest.raises(BackendError, match=r"'native' .* not built into this copy"):
        choose(backends, "native", a_call())


def test_a_named_backend_serves_or_fails_with_its_reason():
    backends = (backend("fast"), backend("odd", "needs head size 64, got 48"), backend("slow"))
    assert choose(backends, "slow", a_call()) == 2
    with pytest.raises(BackendError, match=r"wkv6: backend 'odd' .* needs head size 64, got 48"):
        choose(backends, "odd", a_call())


def test_auto_may_mean_one_backend_for_a_while_and_named_ones_stay():
    backends = (backend("fast"), backend("slow", "no"), backend("exact"))
    with dispatch.auto_means("exact"):
        assert choose(backends, "auto", a_call()) == 2
        assert choose(backends, "fast", a_call()) == 0
        with dispatch.auto_means("slow"), pytest.raises(BackendError, match="'slow' was asked for"):
            choose(backends, "auto", a_call())
        assert choose(backends, "auto", a_call()) == 2
    assert choose(backends, "auto", a_call()) == 0


def test_an_unknown_name_is_answered_with_the_known_ones():
    backends = (backend("fast"), backend("slow"))
    with pytest.raises(BackendError, match=r"unknown backend 'fats'.*'auto'.*'fast', 'slow'"):
        choose(backends, "fats", a_call())


def test_no_backend_at_all_is_an_error_with_every_reason():
    backends = (backend("fast", "no compiler"), backend("slow", "too tired"))
    with pytest.raises(BackendError, match=r"fast: no compiler; slow: too tired"):
        choose(backends, "auto", a_call())


def test_a_backends_own_failure_is_not_swallowed():
    def broken(call):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        choose((backend("fast", broken), backend("slow")), "auto", a_call())


@pytest.mark.parametrize("op", OPS)
def test_every_operator_prefers_native_then_chunked_then_reference(op):
    module = __import__(f"rwkv_train.ops.{op}", fromlist=["BACKENDS"])
    whole = [b for b in module.BACKENDS if not b.kernel]
    assert [b.name for b in whole] == ["native", "chunked", "reference"]
    assert all(b.module == f"rwkv_train.ops.{op}.{b.name}" for b in whole)


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_of_native_can_be_asked_for_by_name_and_are_config_values(op):
    module = __import__(f"rwkv_train.ops.{op}", fromlist=["BACKENDS"])
    kernels = {b.name: b for b in module.BACKENDS if b.kernel}
    expected = {"native:scan", "native:wide"}
    if op != "wkv4":
        expected |= {"native:chunks", "native:segments"}
    assert set(kernels) == expected
    assert all(b.module == f"rwkv_train.ops.{op}.native" for b in kernels.values())
    assert {b.kernel for b in kernels.values()} <= set(KERNELS)
    assert {b.name for b in module.BACKENDS} | {"auto"} <= set(get_args(choices.BackendName))


def test_the_call_says_what_a_backend_may_ask(monkeypatch):
    seen = []
    for b in BACKENDS:
        run = b.run

        def refuses(call):
            seen.append(call)
            return Refusal("not today", news=False)

        fake = [SimpleNamespace(refuses=refuses, run=run)]
        monkeypatch.setitem(dispatch._modules, b.module, fake)
    x = torch.zeros(1, 3, 2, 4, dtype=torch.bfloat16)
    u = torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(BackendError, match="no backend"):
        wkv6(x, x, x, x, u, reset=torch.zeros(1, 3, dtype=torch.bool))
    assert seen[0] == Call(
        "wkv6",
        torch.device("cpu"),
        torch.bfloat16,
        batch=1,
        time=4,
        heads=2,
        head_size=4,
        needs_grad=True,
        has_state=False,
        has_reset=True,
    )
    with torch.no_grad(), pytest.raises(BackendError, match="no backend"):
        wkv6(x, x, x, x, u, torch.zeros(1, 2, 4, 4))
    assert seen[-1].has_state and not seen[-1].has_reset and not seen[-1].needs_grad


def test_importing_an_operator_imports_neither_backends_nor_compilers():
    code = (
        "import sys, torch; before = set(sys.modules); import rwkv_train.ops.wkv6\n"
        "new = set(sys.modules) - before\n"
        "assert not [m for m in new if 'chunked' in m or 'native' in m or '_dynamo' in m], new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("op", OPS)
def test_torch_compile_traces_the_call_without_a_break_at_several_lengths(op):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda case, leaves: call(case, leaves, "chunked"), backend="eager", fullgraph=True
    )
    for time in (3, 5):
        # several rows and heads, so that no part of a tensor is contiguous by chance
        case = make_case(op, 2, time, 2, 4, reset=True)
        leaves = {name: value.clone().requires_grad_() for name, value in case.inputs.items()}
        y, _ = compiled(case, leaves)
        expected, _ = call(case, case.inputs, "reference")
        torch.testing.assert_close(y, expected)
        (y * case.gy).sum().backward()
        assert all(leaf.grad is not None for leaf in leaves.values())
    torch.compiler.reset()


def good_arguments():
    """Valid arguments of wkv6 by name; a test spoils one of them."""
    x = torch.zeros(2, 3, 2, 4)
    return {"r": x, "k": x, "v": x, "w": x, "u": x[0, 0], "state": torch.zeros(2, 2, 4, 4)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", torch.zeros(2, 3, 2, 5), r"k has shape \[2, 3, 2, 5\], expected \[2, 3, 2, 4\]"),
        ("k", torch.zeros(2, 3, 8), r"k has shape \[2, 3, 8\], expected \[B, T, H, N\]"),
        ("v", torch.zeros(2, 3, 2, 4).half(), r"v has dtype torch.float16, expected torch.float32"),
        ("v", torch.zeros(2, 3, 2, 4, dtype=torch.int64), r"v has dtype torch.int64, expected one"),
        ("v", torch.zeros(2, 3, 2, 4, device="meta"), r"v has device meta, expected cpu"),
        ("r", "text", r"r is str, expected a tensor"),
        ("w", torch.zeros(2, 4), r"w has shape \[2, 4\], expected \[2, 3, 2, 4\]"),
        ("u", torch.zeros(8), r"u has shape \[8\], expected \[2, 4\]"),
        ("u", torch.zeros(2, 4, dtype=torch.bool), r"u is torch.bool, expected a float tensor"),
        ("u", torch.zeros(2, 4, device="meta"), r"u is on meta, expected cpu"),
        ("state", torch.zeros(2, 4, 4), r"state has shape \[2, 4, 4\], expected \[2, 2, 4, 4\]"),
        ("reset", torch.zeros(2, 3), r"reset is torch.float32 \[2, 3\], expected a bool"),
        ("reset", torch.zeros(3, 2, dtype=torch.bool), r"reset is torch.bool \[3, 2\], expected"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_given_and_expected(name, value, message):
    with pytest.raises(BackendError, match=f"wkv6: {message}"):
        wkv6(**(good_arguments() | {name: value}))


def test_an_empty_sequence_is_refused():
    empty = {name: torch.zeros(2, 0, 2, 4) for name in "rkvw"}
    with pytest.raises(BackendError, match="no axis empty"):
        wkv6(**(good_arguments() | empty))


@pytest.mark.parametrize("state", [torch.zeros(1, 2), (torch.zeros(1, 2),) * 2])
def test_wkv4_asks_for_the_three_parts_of_its_state(state):
    x = torch.zeros(1, 3, 2)
    with pytest.raises(BackendError, match=r"expected None or a tuple \(aa, bb, pp\)"):
        wkv4(x[0, 0], x[0, 0], x, x, state)
    with pytest.raises(BackendError, match=r"state bb has shape \[2, 2\], expected \[1, 2\]"):
        wkv4(x[0, 0], x[0, 0], x, x, (x[0, :1], torch.zeros(2, 2), x[0, :1]))
