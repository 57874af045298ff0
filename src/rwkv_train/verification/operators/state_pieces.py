"""Calls of the recurrences' state-only forms, all four in one: what a piece does to the state.

Decays are slow, since with fast ones nothing comes through a piece and any transition would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.pieces import (
    wkv4_piece,
    wkv4_state_gradient,
    wkv5_piece,
    wkv5_state_gradient,
    wkv6_piece,
    wkv6_state_gradient,
    wkv7_piece,
    wkv7_state_gradient,
)
from rwkv_train.ops.wkv4 import BACKENDS as WKV4_BACKENDS
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.operators.problem import Problem, Tensors, exact_in_16_bits

_WIDE = frozenset(("w", "row w", "base", "aa", "bb", "pp"))
_WKV4_NAMES = {backend.name for backend in WKV4_BACKENDS}


class _Size(NamedTuple):
    """A batch, its length, heads and their size; whether its first row has documents."""

    case: str
    batch: int
    time: int
    heads: int
    size: int
    reset: bool = False


# As those of the recurrences: around 64 tokens, chunks, and a size that fills no vector.
_SIZES = (
    _Size("65 tokens, documents, heads of 64", 2, 65, 2, 64, reset=True),
    _Size("17 tokens, heads of 32", 2, 17, 1, 32),
    _Size("129 tokens, heads of 64", 1, 129, 1, 64),
    _Size("33 tokens, heads of 5", 3, 33, 2, 5, reset=True),
    _Size("1 token, heads of 32", 1, 1, 1, 32),
)


def piece_problems() -> Iterator[Problem]:
    """Yields calls of the forms in `ops.pieces`, which have no derivative."""
    for number, size in enumerate(_SIZES):
        yield _problem(size, FixedNumbers(300 + number))


def _problem(size: _Size, draws: FixedNumbers) -> Problem:
    sequence = (size.batch, size.time, size.heads, size.size)
    head, channels = sequence[2:], (size.batch, size.heads * size.size)
    inputs = {name: draws.normal(*sequence) for name in ("r", "k", "v", "a", "gy")}
    inputs["a"] = functional.normalize(inputs["a"], dim=-1)
    inputs["b"] = -inputs["a"] * draws.uniform(*sequence)
    inputs |= {"w": -8 + 5 * draws.uniform(*sequence), "row w": -8 + 5 * draws.uniform(*head)}
    inputs |= {"base": draws.normal(*head) / 8, "aa": draws.normal(*channels)}
    inputs |= {"bb": draws.uniform(*channels) + 0.5, "pp": draws.normal(*channels)}
    reset = draws.uniform(size.batch, size.time) < 0.15 if size.reset else None
    if reset is not None:
        reset[1:] = False

    def call(given: Tensors, backend: str) -> Tensors:
        flags = None if reset is None else reset.to(given["k"].device)
        options: dict[str, Any] = {"backend": backend, "reset": flags}
        return _channels(given, options) | _heads(given, options)

    return Problem(size.case, exact_in_16_bits(inputs), call, wide=_WIDE, finished=_on_one_scale)


def _channels(given: Tensors, options: dict[str, Any]) -> Tensors:
    # A kernel that the other recurrences have and this one has not.
    backend = options["backend"] if options["backend"] in _WKV4_NAMES else "native"
    options = options | {"backend": backend}
    w, u = given["row w"].flatten(), given["base"].flatten()
    k, v, gy = (given[name].flatten(2) for name in ("k", "v", "gy"))
    aa, bb, pp = wkv4_piece(w, k, v, **options).sums
    state = (given["aa"], given["bb"], given["pp"])
    gaa, gbb, _ = wkv4_state_gradient(gy, w, u, k, v, state, **options)
    found = {"wkv4 aa": aa, "wkv4 bb": bb, "wkv4 pp": pp}
    return found | {"wkv4 gaa": gaa, "wkv4 gbb": gbb}


def _heads(given: Tensors, options: dict[str, Any]) -> Tensors:
    r, k, v, a, b, w, gy = (given[name] for name in ("r", "k", "v", "a", "b", "w", "gy"))
    row_w, based = given["row w"], options | {"base": given["base"]}
    five, six = wkv5_piece(k, v, row_w, **options), wkv6_piece(k, v, w, **based)
    seven = wkv7_piece(w, k, v, a, b, **based)
    return {
        "wkv5 decay": five.decay,
        "wkv5 contribution": five.contribution,
        "wkv5 gradient": wkv5_state_gradient(gy, r, row_w, **options),
        "wkv6 decay": six.decay,
        "wkv6 contribution": six.contribution,
        "wkv6 gradient": wkv6_state_gradient(gy, r, w, **based),
        "wkv7 transition": seven.transition,
        "wkv7 contribution": seven.contribution,
        "wkv7 gradient": wkv7_state_gradient(gy, r, w, a, b, **based),
    }


def _on_one_scale(results: Tensors, exact: Tensors) -> Tensors:
    """Returns the results with the sums that wkv4's aa and bb stand for; pp is arbitrary."""
    scaled = ("wkv4 aa", "wkv4 bb", "wkv4 pp")
    found = {name: x for name, x in results.items() if name not in scaled}
    scale: Tensor = torch.exp(results["wkv4 pp"].double())
    found["wkv4 sum a"] = results["wkv4 aa"].double() * scale
    found["wkv4 sum b"] = results["wkv4 bb"].double() * scale
    return found
