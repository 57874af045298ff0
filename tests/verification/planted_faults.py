"""Faults to plant: backends and parts of a run that are wrong in one respect each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]


def change_run(monkeypatch: Any, module: ModuleType, change: Callable[[Run], Run]) -> None:
    """Puts `change(run)` in the place of a backend's `run`."""
    monkeypatch.setattr(module, "run", change(module.run))


def with_input(position: int, change: Callable[[Tensor], Tensor]) -> Callable[[Run], Run]:
    """Changes one of the tensors that a backend is given."""

    def changed(run: Run) -> Run:
        def wrong(*arguments: Any, **options: Any) -> Any:
            given = list(arguments)
            given[position] = change(given[position])
            return run(*given, **options)

        return wrong

    return changed


def with_result(position: int, change: Callable[[Tensor], Tensor]) -> Callable[[Run], Run]:
    """Changes one of the tensors that a backend returns."""

    def changed(run: Run) -> Run:
        def wrong(*arguments: Any, **options: Any) -> Any:
            results = list(run(*arguments, **options))
            results[position] = change(results[position])
            return tuple(results)

        return wrong

    return changed


def gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Leaves a tensor as it is, and changes the gradient that arrives for it."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return change(grad)

    return Changed.apply


def every_other_time_larger() -> Callable[[Tensor], Tensor]:
    """Makes every second gradient larger by a rounding, as sums in changing order do."""
    calls = count()
    return lambda grad: grad * (1 + 2.0**-20 * (next(calls) % 2))
