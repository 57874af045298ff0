"""Calls of what stands at the end of a step: head and loss, the optimizer; and decoding's product.

Logits are the sums of products, which a product of 16-bit operands rounds on a CPU; so do their
gradients, and what they give: a 16-bit result of the loss is rounded several times on its way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors, adamw_update, gradient_norm
from rwkv_train.ops.head_loss import Targets, head_loss, head_token_losses
from rwkv_train.ops.head_loss.reference import head_loss_reference, head_token_losses_reference
from rwkv_train.ops.matvec import matvec
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.operators.problem import (
    BF16,
    FP16,
    FP32,
    FP64,
    Problem,
    Tensors,
    exact_in_16_bits,
)

# Twice what torch's own operators need at most in fp16; the project's kernels need two.
_LOSS_ROUNDINGS = 6


def loss_problems() -> Iterator[Problem]:
    """Yields the calls of `ops.head_loss`: whole and in slices, weighted, with extra logits."""
    yield _loss("130 tokens, 300 words, slices of 64", (2, 65, 64, 300), 64, FixedNumbers(400))
    whole = (3, 13, 40, 1100)
    yield _loss("39 tokens, 1100 words, extra logits", whole, None, FixedNumbers(401), True)
    yield _loss("1 token, 5 words", (1, 1, 8, 5), None, FixedNumbers(402))


def _loss(
    case: str,
    shape: tuple[int, int, int, int],
    rows: int | None,
    draws: FixedNumbers,
    with_extra: bool = False,
) -> Problem:
    batch, time, width, words = shape
    ids = draws.integers(words, batch, time)
    weights = draws.integers(4, batch, time).double()
    weights[0, 0] = 1.0
    inputs = {"x": draws.normal(batch, time, width), "weight": draws.normal(words, width) / 4}
    if with_extra:
        inputs["extra"] = draws.normal(batch, time, words)

    def call(given: Tensors, backend: str) -> Tensors:
        x, extra = given["x"], given.get("extra")
        targets = Targets(ids.to(x.device), weights.to(x.device), None, rows)
        options = {"extra_logits": extra, "backend": backend}
        loss = head_loss(x, given["weight"], targets, **options)  # type: ignore[arg-type]  # two kinds
        each = head_token_losses(x, given["weight"], targets.ids, rows=rows, **options)  # type: ignore[arg-type]
        return {"loss": loss, "losses of tokens": each}

    def truth(given: Tensors) -> Tensors:
        x, weight, extra = given["x"], given["weight"], given.get("extra")
        loss = head_loss_reference(x, weight, ids, mask=weights, extra_logits=extra)
        each = head_token_losses_reference(x, weight, ids, extra_logits=extra)
        return {"loss": loss, "losses of tokens": each}

    # As large as the number of tokens: fp16 keeps no gradient of a mean.
    gradients = {"loss": torch.tensor(float(weights.sum()), dtype=FP64)}
    # Of a handful of numbers the errors of four roundings are no mean over many.
    dtypes = Problem.dtypes if time > 1 else (FP64, FP32)
    inputs = exact_in_16_bits(inputs)
    return Problem(
        case, inputs, call, gradients, dtypes=dtypes, roundings=_LOSS_ROUNDINGS, truth=truth
    )


_RATES, _DECAYS = (1e-3, 3e-3), (0.1, 0.0)
_PARAMETERS = ((), (7, 9), (1025,), (3, 5, 64))


def adamw_problems() -> Iterator[Problem]:
    """Yields calls of `ops.adamw`: three steps with gradients in every float type."""
    yield _adamw("3 steps, clipped", 1.0, FixedNumbers(420))
    yield _adamw("3 steps", 0.0, FixedNumbers(421))


def _adamw(case: str, limit: float, draws: FixedNumbers) -> Problem:
    """Returns a call whose results are parameters, moments and norms; limit: 0 clips nothing."""
    inputs = {f"parameter {i}": draws.normal(*shape) for i, shape in enumerate(_PARAMETERS)}
    inputs |= {
        f"gradient {i} of step {step}": draws.normal(*shape) * 10.0**-i
        for step in range(3)
        for i, shape in enumerate(_PARAMETERS)
    }
    wide = frozenset(name for name in inputs if name.startswith("parameter"))

    def call(given: Tensors, backend: str) -> Tensors:
        numbers = range(len(_PARAMETERS))
        parameters = [given[f"parameter {i}"] for i in numbers]
        first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        weights = [torch.zeros_like(p, dtype=BF16) for p in parameters]
        tensors = AdamwTensors(
            parameters, [], first, second, [torch.zeros(()) for _ in parameters], weights
        )
        rates, decays = ([of[i % 2] for i in numbers] for of in (_RATES, _DECAYS))
        norms = []
        for step in range(3):
            gradients = [given[f"gradient {i} of step {step}"] for i in numbers]
            norms.append(gradient_norm(gradients, backend=backend))
            options = AdamwOptions(
                rates, decays, 0.9, 0.99, 1e-18, norms[-1] if limit else None, limit
            )
            adamw_update(tensors._replace(gradients=gradients), options, backend=backend)
        results = {"norm": torch.stack(norms).to(parameters[0].dtype)}
        for i in numbers:
            results[f"parameter {i}"] = parameters[i]
            results[f"first moment {i}"] = first[i]
            results[f"second moment {i}"] = second[i]
        return results

    return Problem(case, exact_in_16_bits(inputs), call, wide=wide)


def matvec_problems() -> Iterator[Problem]:
    """Yields calls of `ops.matvec` with matrices in every format, for up to 8 vectors."""
    for number, (batch, rows, columns) in enumerate(((3, 65, 130), (8, 37, 99), (1, 1, 1))):
        draws = FixedNumbers(440 + number)
        whole = draws.integers(255, rows, columns) - 127
        scale = exact_in_16_bits({"scale": draws.uniform(rows) / 64})["scale"]
        inputs = exact_in_16_bits(
            {"x": draws.normal(batch, columns), "weight": draws.normal(rows, columns)}
        )

        def call(
            given: Tensors, backend: str, whole: Tensor = whole, scale: Tensor = scale
        ) -> Tensors:
            x, weight = given["x"], given["weight"]
            found = {
                f"y with {name}": matvec(x, weight.to(kind), backend=backend)
                for name, kind in (("fp32", FP32), ("bf16", BF16), ("fp16", FP16))
            }
            eight = whole.to(x.device, torch.int8)
            found["y with int8"] = matvec(x, eight, scale.to(x.device, FP32), backend=backend)
            return found

        case = f"{batch} vectors, {rows} by {columns}"
        yield Problem(case, inputs, call)
