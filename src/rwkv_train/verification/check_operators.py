"""Compares every result and gradient of an operator, by every backend, with the fp64 reference."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from rwkv_train.errors import BackendError
from rwkv_train.verification.golden_file import projection_error
from rwkv_train.verification.operators.problem import (
    BF16,
    DTYPE_NAMES,
    FP32,
    FP64,
    Problem,
    Tensors,
)
from rwkv_train.verification.operators.problem_table import PROBLEMS
from rwkv_train.verification.outcomes import NotRun, Outcome, Part
from rwkv_train.verification.tolerances import TOLERANCE, relative_rms

# Who gave the results that the golden file has, against which the reference itself is compared.
STORED = "stored"
QUICK_PROBLEMS, QUICK_DTYPES = 2, (FP32, BF16)


def check_operator(
    op: str, device: torch.device, stored: Mapping[str, Any], quick: bool = False
) -> Part:
    """Returns what was found out about an operator on a device.

    stored: results of the reference in fp64 that the golden file has.
    """
    problems = list(islice(PROBLEMS[op](), QUICK_PROBLEMS if quick else None))
    findings: list[Outcome] = []
    not_run: list[NotRun] = []
    with _poisoned_memory(device), _exact_products():
        exact = [problem.exact() for problem in problems]
        if device.type == "cpu":
            findings += _against_stored(op, problems[0], exact[0], stored)
        for backend in _backends(op, device):
            reasons = set()
            for problem, right in zip(problems, exact):
                dtypes = set(problem.by_reference if backend == "reference" else problem.dtypes)
                dtypes &= set(QUICK_DTYPES if quick else DTYPE_NAMES)
                for dtype in sorted(dtypes, key=list(DTYPE_NAMES).index):
                    try:
                        findings += _check(op, problem, right, backend, dtype, device)
                    except BackendError as error:
                        reasons.add(_reason(error))
            served = any(f.backend == _who(backend, device) for f in findings)
            if reasons and not served:
                not_run.append(NotRun(op, _who(backend, device), sorted(reasons)[0]))
    return Part(op, tuple(findings), tuple(not_run))


def _check(
    op: str,
    problem: Problem,
    exact: Tensors,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Outcome]:
    """Raises BackendError where the backend does not serve the call."""
    about = (op, _who(backend, device), DTYPE_NAMES[dtype])
    try:
        raw = problem.results(backend, dtype, device)
        again = _repeated(problem, backend, dtype, device)
    except BackendError:
        raise
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Outcome(*about, "the call", problem.case, fault=fault)]
    # In the types that the results have, before `finished` widens some of them.
    found = problem.finished(raw, exact)
    findings = []
    for name, right in problem.finished(exact, exact).items():
        kind = found[name].dtype if name not in raw else raw[name].dtype
        kind = FP32 if kind == FP64 and dtype != FP64 else kind
        bound, least = problem.allowed(dtype, kind, right)
        off = relative_rms(found[name], right)
        findings.append(Outcome(*about, name, problem.case, off, bound, least))
    for name, value in again.items():
        differs = (value != raw[name]) & ~(value.isnan() & raw[name].isnan())
        share = differs.double().mean().item()
        findings.append(Outcome(*about, f"{name}, repeated", problem.case, share, 0.0))
    return findings


def _against_stored(
    op: str, problem: Problem, exact: Tensors, stored: Mapping[str, Any]
) -> list[Outcome]:
    """Compares the reference itself with what it gave where the golden file was made."""
    bound = TOLERANCE[FP64]
    return [
        Outcome(
            op, STORED, "fp64", name, problem.case, projection_error(value, stored.get(name)), bound
        )
        for name, value in problem.finished(exact, exact).items()
    ]


def _backends(op: str, device: torch.device) -> Sequence[str]:
    """Returns the names to ask for; a CPU has one native kernel."""
    names = [b.name for b in importlib.import_module(f"rwkv_train.ops.{op}").BACKENDS]
    return names if device.type == "cuda" else [name for name in names if ":" not in name]


def _who(backend: str, device: torch.device) -> str:
    return backend if device.type == "cpu" else f"{backend} on the card"


def _repeated(problem: Problem, backend: str, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Returns the results once more, by one thread; none where no backend promises equal bits."""
    if not backend.startswith("native") or dtype not in (FP32, BF16):
        return {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return problem.results(backend, dtype, device)
    finally:
        torch.set_num_threads(threads)


def _reason(error: BackendError) -> str:
    """Returns why a backend refuses, without what the message says around it."""
    found = re.search(r"cannot serve the call: (.*?)\. Remove the cause", str(error), re.DOTALL)
    return " ".join((found[1] if found else str(error)).split())


@contextlib.contextmanager
def _poisoned_memory(device: torch.device) -> Iterator[None]:
    """Lets fresh tensors hold NaN, so that an element that nothing writes cannot hide.

    On a card the same switch would change which of torch's kernels run.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Lets torch multiply fp32 matrices in fp32, as a run in fp32 does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
