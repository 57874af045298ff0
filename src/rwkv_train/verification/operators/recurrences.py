"""Calls of the four recurrences: odd lengths, documents, decays from never to at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7_and_bonus
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.operators.problem import Problem, Tensors, exact_in_16_bits

_WIDE = frozenset(("w", "u", "base", "bonus", "state", "aa", "bb", "pp"))
# What w is where decays are as different as can be, from token to token or channel to channel:
# for wkv4 to 6 exp(-exp(w)) is 1, nearly 1, a third, almost 0 and 0.
_EXTREMES = (-40.0, -8.0, 0.0, 2.0, 6.0, 100.0)


class _Size(NamedTuple):
    """A batch, its length, heads and their size; whether it has documents, and which decays."""

    case: str
    batch: int
    time: int
    heads: int
    size: int
    reset: bool = False
    decays: str = "usual"


# In the order of their importance. Lengths around the 64 tokens between kept states and the chunks
# of 16 and 32; sizes that CUDA kernels have, and one that fills no vector.
_SIZES = (
    _Size("65 tokens, documents, heads of 64", 2, 65, 2, 64, reset=True),
    _Size("70 tokens, extreme decays", 1, 70, 2, 32, decays="extreme"),
    _Size("129 tokens, nothing forgotten", 1, 129, 1, 64, decays="none"),
    _Size("17 tokens, heads of 5", 3, 17, 2, 5),
    _Size("1 token", 2, 1, 1, 32),
    _Size("200 tokens, heads of 64", 1, 200, 2, 64),
    _Size("33 tokens, heads of 128", 1, 33, 1, 128, reset=True),
)


def wkv_problems(op: str) -> Iterator[Problem]:
    """Yields the calls of "wkv4" to "wkv7"."""
    for number, size in enumerate(_SIZES):
        yield _MAKERS[op](size, FixedNumbers(100 + number))


def _decays(size: _Size, usual: Tensor, draws: FixedNumbers) -> Tensor:
    if size.decays == "extreme":
        picks = draws.integers(len(_EXTREMES), *usual.shape)
        return torch.tensor(_EXTREMES, dtype=torch.float64)[picks]
    return torch.full_like(usual, -40.0) if size.decays == "none" else usual


def _starts(size: _Size, draws: FixedNumbers) -> Tensor | None:
    return draws.uniform(size.batch, size.time) < 0.15 if size.reset else None


def _wkv4(size: _Size, draws: FixedNumbers) -> Problem:
    width, reset = size.heads * size.size, _starts(size, draws)
    row, sequence = (size.batch, width), (size.batch, size.time, width)
    inputs = {
        "w": _decays(size, draws.normal(width) * 2 - 1, draws),
        "u": draws.normal(width),
        "k": draws.normal(*sequence),
        "v": draws.normal(*sequence),
        "aa": draws.normal(*row),
        "bb": draws.uniform(*row) + 0.5,
        "pp": draws.normal(*row),
    }
    gradients = {"y": draws.normal(*sequence), "aa": draws.normal(*row), "bb": draws.normal(*row)}

    def call(given: Tensors, backend: str) -> Tensors:
        w, u, k, v, *state = given.values()
        flags = None if reset is None else reset.to(k.device)
        y, (aa, bb, pp) = wkv4(w, u, k, v, tuple(state), backend=backend, reset=flags)  # type: ignore[arg-type]  # three of them
        return {"y": y, "aa": aa, "bb": bb, "pp": pp}

    def finished(results: Tensors, exact: Tensors) -> Tensors:
        found = {name: x for name, x in results.items() if name not in ("aa", "bb", "pp", "gpp")}
        # The scale pp is arbitrary; these are the sums that it and aa, bb stand for.
        scale = results["pp"].double().exp()
        found["final state a"] = results["aa"].double() * scale
        found["final state b"] = results["bb"].double() * scale
        # The sum of aa gaa and bb gbb, which may cancel down to their rounding in any fp32
        # computation: without its first term it is judged by the size of the second.
        found["gpp"] = results["gpp"].double() - inputs["aa"] * exact["gaa"]
        return found

    inputs, gradients = exact_in_16_bits(inputs), exact_in_16_bits(gradients)
    return Problem(size.case, inputs, call, gradients, _WIDE, finished=finished)


def _of_heads(
    size: _Size, draws: FixedNumbers, names: str
) -> tuple[Tensors, Tensors, Callable[[Tensor], Tensor | None]]:
    """Returns sequences and a state, what arrives for y and the state, and the reset flags."""
    sequence = (size.batch, size.time, size.heads, size.size)
    square = (size.batch, size.heads, size.size, size.size)
    inputs = {name: draws.normal(*sequence) for name in names}
    inputs["state"] = draws.normal(*square)
    gradients = {"y": draws.normal(*sequence), "final state": draws.normal(*square)}
    reset = _starts(size, draws)
    return inputs, gradients, lambda like: None if reset is None else reset.to(like.device)


def _wkv5(size: _Size, draws: FixedNumbers) -> Problem:
    inputs, gradients, flags = _of_heads(size, draws, "rkv")
    row = (size.heads, size.size)
    inputs["w"] = _decays(size, draws.normal(*row) * 2 - 2, draws)
    inputs["u"] = draws.normal(*row)

    def call(given: Tensors, backend: str) -> Tensors:
        r, k, v, w, u = (given[name] for name in "rkvwu")
        y, state = wkv5(r, k, v, w, u, given["state"], backend=backend, reset=flags(r))
        assert state is not None, "it was asked for"
        return {"y": y, "final state": state}

    inputs, gradients = exact_in_16_bits(inputs), exact_in_16_bits(gradients)
    return Problem(size.case, inputs, call, gradients, _WIDE)


def _wkv6(size: _Size, draws: FixedNumbers) -> Problem:
    inputs, gradients, flags = _of_heads(size, draws, "rkv")
    row = (size.heads, size.size)
    inputs["w"] = _decays(size, draws.normal(*inputs["r"].shape) * 2 - 2, draws)
    inputs |= {"u": draws.normal(*row), "base": draws.normal(*row) / 8}

    def call(given: Tensors, backend: str) -> Tensors:
        r, k, v, w, u = (given[name] for name in "rkvwu")
        y, state = wkv6(
            r, k, v, w, u, given["state"], base=given["base"], backend=backend, reset=flags(r)
        )
        assert state is not None, "it was asked for"
        return {"y": y, "final state": state}

    inputs, gradients = exact_in_16_bits(inputs), exact_in_16_bits(gradients)
    return Problem(size.case, inputs, call, gradients, _WIDE)


def _wkv7(size: _Size, draws: FixedNumbers) -> Problem:
    inputs, gradients, flags = _of_heads(size, draws, "rkva")
    shape, row = inputs["r"].shape, (size.heads, size.size)
    inputs["a"] = functional.normalize(inputs["a"], dim=-1)
    inputs["b"] = -inputs["a"] * draws.uniform(*shape)
    inputs["w"] = _decays(size, draws.normal(*shape) * 3, draws)
    inputs |= {"base": draws.normal(*row) / 8, "bonus": draws.normal(*row)}
    gradients["s"] = draws.normal(*shape[:3])

    def call(given: Tensors, backend: str) -> Tensors:
        names = ("r", "w", "k", "v", "a", "b", "bonus", "state")
        r, w, k, v, a, b, bonus, state = (given[name] for name in names)
        y, s, final_state = wkv7_and_bonus(
            *(r, w, k, v, a, b, bonus, state), base=given["base"], backend=backend, reset=flags(r)
        )
        assert final_state is not None, "it was asked for"
        return {"y": y, "s": s, "final state": final_state}

    inputs, gradients = exact_in_16_bits(inputs), exact_in_16_bits(gradients)
    return Problem(size.case, inputs, call, gradients, _WIDE)


_MAKERS = {"wkv4": _wkv4, "wkv5": _wkv5, "wkv6": _wkv6, "wkv7": _wkv7}
