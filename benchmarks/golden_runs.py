"""Makes the golden file of `rwkv-verify`: what operators and tiny runs give, computed in fp64.

    python -m benchmarks.golden_runs [--output src/rwkv_train/verification/golden.json]

Everything is computed by the reference backends. The weights of a run are drawn in fp32, as always,
and its steps are made in fp64; runs in fp32, some from weights moved by a rounding, tell how far
fp32 may be off. To be made anew when the mathematics of a run changes or `verification.golden_run`
does; the commit says why.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from rwkv_train.config.versions import VERSIONS
from rwkv_train.models.backbone import RWKV
from rwkv_train.ops.backends.dispatch import auto_means
from rwkv_train.training import run as trainer
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.start.initial_weights import StartModel, make_model
from rwkv_train.verification.check_run import (
    DOES_NOT_LEARN,
    bits_of,
    group_table,
    optimizer_numbers,
    platform_key,
)
from rwkv_train.verification.golden_file import (
    DIGITS,
    GOLDEN_FILE,
    PARAMETER_DIGITS,
    ROUNDING_DIGITS,
    StoredParameter,
    projection,
    with_digits,
)
from rwkv_train.verification.golden_run import GoldenRun, run_golden
from rwkv_train.verification.operators.problem_table import PROBLEMS
from rwkv_train.verification.tolerances import relative_rms

# Runs in fp32 whose distance from the exact one is measured: backends, then perturbed ones.
BACKENDS = ("auto", "chunked")
PERTURBED = 4


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden_runs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=GOLDEN_FILE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = {
        "operators": {op: stored_results(op) for op in PROBLEMS},
        "runs": {version: stored_run(version) for version in VERSIONS},
    }
    options.output.write_text(rows_of(content) + "\n", encoding="utf-8")
    print(f"wrote {options.output}: {options.output.stat().st_size / 1e3:.0f} KB")


def rows_of(content: dict, depth: int = 0) -> str:
    """Returns JSON in which what holds no further object stands on one line."""
    if not any(isinstance(value, dict) for value in content.values()) and depth:
        return json.dumps(content)
    inside = " " * (depth + 1)
    rows = [
        f"{inside}{json.dumps(key)}: "
        + (rows_of(value, depth + 1) if isinstance(value, dict) else json.dumps(value))
        for key, value in content.items()
    ]
    return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"


def stored_results(op: str) -> dict[str, list[float]]:
    """Returns every result of an operator's first call as two numbers."""
    problem = next(PROBLEMS[op]())
    exact = problem.exact()
    return {name: numbers_of(x) for name, x in problem.finished(exact, exact).items()}


def numbers_of(x: Tensor, digits: int = DIGITS) -> list[float]:
    """Returns what the file holds of a tensor."""
    return [with_digits(value, digits) for value in projection(x)]


def stored_run(version: str) -> dict:
    """Returns a version's run: its exact curve and weights, and how far fp32 is off."""
    with auto_means("reference"):
        with changed_model(lambda model: model.double()):
            exact = run_golden(version, wkv_backend="reference")
        plain = run_golden(version, wkv_backend="reference")
    rounded = [plain, *(run_golden(version, wkv_backend=name) for name in BACKENDS)]
    for seed in range(PERTURBED):
        with changed_model(lambda model, seed=seed: perturb(model, seed)):
            rounded.append(run_golden(version))
    # Rates are pure arithmetic: every digit of them counts.
    curves = {name: [s[name] for s in exact.steps] for name in ("lr", "weight_decay")}
    for name in ("loss", "grad_norm"):
        curves[name] = [with_digits(step[name]) for step in exact.steps]
    rounding = {name: error_of_curves(name, rounded, exact) for name in ("loss", "grad_norm")}
    print(f"RWKV-{version}: fp32 errs by", rounding)
    groups = group_table(exact.config)
    return {
        "optimizer": optimizer_numbers(exact.config),
        **curves,
        "rounding": rounding,
        "parameters": {
            name: parameter_row(name, exact, rounded, groups) for name in sorted(exact.first)
        },
        "bits": {platform_key(): bits_of(plain)},
    }


def error_of_curves(name: str, rounded: list[GoldenRun], exact: GoldenRun) -> float:
    """Returns the largest relative error of a step's number in any of the runs in fp32."""
    return with_digits(
        max(
            abs(step[name] - right[name]) / abs(right[name])
            for run in rounded
            for step, right in zip(run.steps, exact.steps)
        ),
        ROUNDING_DIGITS,
    )


def parameter_row(
    name: str, exact: GoldenRun, rounded: list[GoldenRun], groups: dict[str, list[float]]
) -> StoredParameter:
    """Returns the row of a parameter."""
    error = max(relative_rms(moved(run, name), moved(exact, name)) for run in rounded)
    return StoredParameter(
        numbers_of(exact.first[name], PARAMETER_DIGITS),
        numbers_of(moved(exact, name), PARAMETER_DIGITS),
        with_digits(error, ROUNDING_DIGITS),
        *groups.get(name, DOES_NOT_LEARN),
    )


def moved(run: GoldenRun, name: str) -> Tensor:
    """Returns how far a parameter has moved."""
    return run.last[name].double() - run.first[name].double()


def perturb(model: RWKV, seed: int) -> RWKV:
    """Moves every weight by a random part of fp32's rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape).uniform_(-1, 1, generator=generator)
            parameter *= 1 + noise * 2.0**-23
    return model


@contextmanager
def changed_model(change: Callable[[RWKV], RWKV]) -> Iterator[None]:
    """Lets runs train what `change` makes of their model; losses are not rounded to fp32."""

    def made(*arguments: object) -> StartModel:
        start = make_model(*arguments)
        return start._replace(network=change(start.network))

    def step_loss(module: TrainingModule) -> Tensor:
        return torch.stack([loss for loss, _ in module._micro_batches]).mean()

    with (
        mock.patch.object(trainer, "make_model", made),
        mock.patch.object(TrainingModule, "step_loss", step_loss),
    ):
        yield


if __name__ == "__main__":
    main()
