"""Calls of the operators inside a layer, but for its norms: RWKV-7's keys and values, the gates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rwkv_train.ops.head_norm_gate import IDENTITY, SILU, head_norm_gate
from rwkv_train.ops.keys import keys
from rwkv_train.ops.sigmoid_gate import sigmoid_gate
from rwkv_train.ops.split_tanh import split_tanh
from rwkv_train.ops.squared_relu import squared_relu
from rwkv_train.ops.value_residual import value_residual
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.operators.problem import FP32, FP64, Problem, Tensors, exact_in_16_bits

# Of the models' group norm, with a head_size_divisor of 8.
_EPS = 6.4e-4
# Batch, tokens, heads, channels of a head.
_SHAPES = ((2, 65, 2, 64), (1, 130, 3, 32), (3, 1, 1, 5), (1, 500, 2, 64))


def _case(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} tokens, {shape[2]} heads of {shape[3]}"


def _spread(time: int, axes: int) -> torch.Tensor:
    """Returns factors from 0.1 to 30 along the tokens, for gates from half open to shut."""
    return torch.logspace(-1, 1.5, time, dtype=torch.float64).view(1, -1, *[1] * (axes - 2))


def key_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.keys`."""

    def call(given: Tensors, backend: str) -> Tensors:
        return dict(zip("kab", keys(*given.values(), backend=backend)))

    for number, shape in enumerate(_SHAPES):
        draws, width = FixedNumbers(200 + number), shape[2] * shape[3]
        inputs = {"key": draws.normal(*shape)}
        inputs["logits"] = draws.normal(*shape) * _spread(shape[1], 4)
        inputs |= {name: draws.normal(width) for name in ("base", "removal", "replacement")}
        gradients = exact_in_16_bits({name: draws.normal(*shape) for name in "kab"})
        wide = frozenset(("base", "removal", "replacement"))
        yield Problem(_case(shape), exact_in_16_bits(inputs), call, gradients, wide)


def value_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.value_residual`."""
    names = ("v", "again", "carry")

    def call(given: Tensors, backend: str) -> Tensors:
        return dict(zip(names, value_residual(*given.values(), backend=backend)))

    for number, shape in enumerate(_SHAPES):
        draws, flat = FixedNumbers(220 + number), (*shape[:2], shape[2] * shape[3])
        inputs = {name: draws.normal(*flat) for name in ("value", "first", "logits")}
        inputs["logits"] *= _spread(shape[1], 3)
        inputs["base"] = draws.normal(flat[2])
        gradients = exact_in_16_bits({name: draws.normal(*flat) for name in names})
        given, base = exact_in_16_bits(inputs), frozenset(("base",))
        # By torch's operators the two gradients of v are rounded before they are added.
        exact = (FP64, FP32)
        yield Problem(_case(shape), given, call, gradients, base, by_reference=exact)


def relu_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.squared_relu`."""

    def call(given: Tensors, backend: str) -> Tensors:
        return {"z": squared_relu(given["p"], backend=backend)}

    for number, shape in enumerate(_SHAPES):
        draws, flat = FixedNumbers(240 + number), (*shape[:2], shape[2] * shape[3])
        inputs = exact_in_16_bits({"p": draws.normal(*flat) * 2})
        gradients = exact_in_16_bits({"z": draws.normal(*flat)})
        yield Problem(_case(shape), inputs, call, gradients)


def gate_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.sigmoid_gate`."""

    def call(given: Tensors, backend: str) -> Tensors:
        return {"o": sigmoid_gate(given["r"], given["y"], backend=backend)}

    for number, shape in enumerate(_SHAPES):
        draws, flat = FixedNumbers(260 + number), (*shape[:2], shape[2] * shape[3])
        inputs = {"r": draws.normal(*flat) * 4, "y": draws.normal(*flat)}
        gradients = exact_in_16_bits({"o": draws.normal(*flat)})
        yield Problem(_case(shape), exact_in_16_bits(inputs), call, gradients)


def tanh_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.split_tanh`: heads are the parts, and some x are tiny."""

    def call(given: Tensors, backend: str) -> Tensors:
        x = given["x"]
        return {"y": split_tanh(x.flatten(2), x.shape[2], backend=backend)}

    for number, (batch, time, parts, rank) in enumerate(_SHAPES):
        draws = FixedNumbers(340 + number)
        inputs = exact_in_16_bits({"x": draws.normal(batch, time, parts, rank) * _spread(time, 4)})
        gradients = exact_in_16_bits({"y": draws.normal(parts, batch, time, rank)})
        case = _case((batch, time, parts, rank))
        # The gradient is made of the square of y, which has the rounding of y twice.
        yield Problem(case, inputs, call, gradients, roundings=3)


def head_norm_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.head_norm_gate`, RWKV-7's with a bonus and RWKV-6's with silu."""
    for number, shape in enumerate(_SHAPES):
        for activation in (IDENTITY, SILU):
            yield _head_norm(shape, activation, FixedNumbers(280 + number))


def _head_norm(shape: tuple[int, int, int, int], activation: str, draws: FixedNumbers) -> Problem:
    width = shape[2] * shape[3]
    flat = (*shape[:2], width)
    y = draws.normal(*shape) + 3 * draws.normal(*shape[:3], 1)
    inputs = {"y": y, "g": 4 * draws.normal(*flat)}
    inputs |= {"weight": draws.normal(width), "bias": draws.normal(width)}
    if activation == IDENTITY:
        inputs |= {"v": draws.normal(*shape), "s": draws.normal(*shape[:3])}

    def call(given: Tensors, backend: str) -> Tensors:
        o = head_norm_gate(**given, eps=_EPS, activation=activation, backend=backend)
        return {"o": o}

    wide = frozenset(("weight", "bias", "s"))
    case = f"{_case(shape)}, {activation}"
    gradients = exact_in_16_bits({"o": draws.normal(*flat)})
    return Problem(case, exact_in_16_bits(inputs), call, gradients, wide)
