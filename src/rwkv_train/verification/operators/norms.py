"""Calls of the norms: residual sum, layer norm and token shift; the embedding behind its norm."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rwkv_train.ops.embedding_norm import embedding_norm
from rwkv_train.ops.norm_shift import moved_shift, norm_shift
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.operators.problem import FP32, FP64, Problem, Tensors, exact_in_16_bits

_MOVED = 5
_WIDE = frozenset(("weight", "bias", "mixes", "last", "again"))


def norm_shift_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.norm_shift`: with and without a branch, a gate, documents."""
    yield _shift("65 tokens, 6 mixes, documents", (2, 65, 64), 6, FixedNumbers(300))
    yield _shift("130 tokens, a gate, moved mixes", (1, 130, 40), 1, FixedNumbers(301), gated=True)
    yield _shift("70 tokens, the norm alone", (2, 70, 17), 0, FixedNumbers(302))
    yield _shift("1 token", (3, 1, 64), 2, FixedNumbers(303))
    yield _shift("500 tokens, 2 mixes", (1, 500, 96), 2, FixedNumbers(304))


def _shift(
    case: str, shape: tuple[int, int, int], count: int, draws: FixedNumbers, *, gated: bool = False
) -> Problem:
    """Returns a call with `count` mixes; gated: with a gate, and the same tokens mixed again.

    The stream is stored in the dtype of x, and the norm reads it there: eighths below 16 have sums
    that every float type holds, so that one exact result serves all of them.
    """
    batch, _, width = shape
    inputs = {
        "x": draws.normal(*shape).mul(8).round() / 8 + 3,
        "weight": draws.normal(width),
        "bias": draws.normal(width),
        "out": draws.normal(*shape).mul(8).round() / 8,
        "last": draws.normal(batch, width),
    }
    results = ["stream", *(f"y{i}" for i in range(max(count, 1)))]
    if count:
        inputs["mixes"] = draws.normal(count, width)
    if gated:
        inputs["gate"] = draws.normal(*shape) * 4
        inputs["again"] = draws.normal(_MOVED, width)
        inputs["moves"] = draws.normal(_MOVED, *shape)
        results += [f"z{i}" for i in range(_MOVED)]
    reset = draws.uniform(*shape[:2]) < 0.2
    gradients = {name: draws.normal(*shape) for name in results}
    gradients["h_last"] = draws.normal(batch, width)

    def call(given: Tensors, backend: str) -> Tensors:
        return _shifted(given, reset.to(given["x"].device), backend)

    # A gated sum is rounded before the norm reads it, and its gradient twice.
    dtypes = (FP64, FP32) if gated else Problem.dtypes
    inputs, gradients = exact_in_16_bits(inputs), exact_in_16_bits(gradients)
    # By torch's operators the gradients of the stream and of the norm are rounded, then added.
    return Problem(case, inputs, call, gradients, _WIDE, dtypes, by_reference=(FP64, FP32))


def _shifted(given: Tensors, reset: Tensor, backend: str) -> Tensors:
    found = norm_shift(
        *(given["x"], given["weight"], given["bias"], given.get("mixes"), given["last"]),
        out=given["out"],
        gate=given.get("gate"),
        reset=reset,
        backend=backend,
    )
    results = {"stream": found.stream, "h_last": found.last}
    results |= {f"y{i}": part for i, part in enumerate(found.mixed)}
    if "moves" in given:
        mixed = moved_shift(
            found.normal, given["again"], given["moves"], given["last"], reset=reset
        )
        results |= {f"z{i}": part for i, part in enumerate(mixed)}
    return results


def embedding_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.embedding_norm`; in one a token stands at most places."""
    for number, (batch, time, tokens, width) in enumerate(
        ((2, 65, 50, 64), (2, 449, 300, 40), (1, 1, 1, 8), (1, 200, 700, 33))
    ):
        draws = FixedNumbers(320 + number)
        ids = draws.integers(tokens, batch, time)
        if time > 400:
            ids[0, :300] = 1
        inputs = {"table": draws.normal(tokens, width)}
        inputs |= {"weight": draws.normal(width), "bias": draws.normal(width)}
        gradients = exact_in_16_bits({"y": draws.normal(batch, time, width)})

        def call(given: Tensors, backend: str, ids: Tensor = ids) -> Tensors:
            table, weight, bias = (given[name] for name in ("table", "weight", "bias"))
            return {"y": embedding_norm(ids.to(table.device), table, weight, bias, backend=backend)}

        case = f"{batch * time} places of {tokens} tokens, width {width}"
        given = exact_in_16_bits(inputs)
        yield Problem(case, given, call, gradients, frozenset(("weight", "bias")))
