"""golden.json: what results and runs are, computed once in fp64; `benchmarks.golden_runs` makes it.

A tensor is stored as two numbers: the sum of its entries with fixed signs, and their root mean
square. A difference of relative size e moves the first by about e, whatever its direction.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.verification.fixed_numbers import FixedNumbers

GOLDEN_FILE = Path(__file__).with_name("golden.json")
# Digits that are kept: below what any comparison of operators allows, of parameters, of roundings.
DIGITS, PARAMETER_DIGITS, ROUNDING_DIGITS = 12, 9, 2
_SIGNS_SEED = 1


@cache
def golden() -> dict[str, Any]:
    """Returns the contents of the file."""
    content: dict[str, Any] = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))
    return content


def golden_digest() -> str:
    """Returns the SHA-256 of the file."""
    return hashlib.sha256(GOLDEN_FILE.read_bytes()).hexdigest()


class StoredParameter(NamedTuple):
    """A parameter of a run, a row of the file.

    first, moved: see `projection`; of the initial value and of what was learnt.
    rounding: how far fp32 errs in what was learnt.  rate: factor of the learning rate.
    """

    first: list[float]
    moved: list[float]
    rounding: float
    rate: float
    weight_decay: float


def stored_parameters(run: Mapping[str, Any]) -> dict[str, StoredParameter]:
    """Returns the parameters of a stored run by name."""
    return {name: StoredParameter(*row) for name, row in run["parameters"].items()}


def projection(x: Tensor) -> list[float]:
    """Returns the two numbers that stand for a tensor: sum with signs over sqrt(n), and RMS."""
    flat = x.detach().double().flatten()
    signed = (flat * _signs(flat.numel())).sum().item() / math.sqrt(flat.numel())
    return [signed, flat.square().mean().sqrt().item()]


def with_digits(value: float, digits: int = DIGITS) -> float:
    """Returns a number with the digits that the file keeps."""
    return float(f"{value:.{digits}g}")


def projection_error(x: Tensor, stored: Sequence[float] | None) -> float:
    """Returns how far a tensor is from the stored one, relative to its RMS; infinity: none is.

    Absolute where that is zero.
    """
    if stored is None:
        return math.inf
    found = projection(x)
    return number_error(found, stored, stored[1])


def number_error(found: Sequence[float], stored: Sequence[float], scale: float) -> float:
    """Returns the largest difference of numbers over `scale`; a NaN if one is among them."""
    differences = [abs(a - b) for a, b in zip(found, stored)]
    largest = math.nan if any(map(math.isnan, differences)) else max(differences)
    return largest / scale if scale > 0 else largest


@cache
def _signs(count: int) -> Tensor:
    return torch.where(FixedNumbers(_SIGNS_SEED).uniform(count) < 0.5, -1.0, 1.0).double()
