"""Calls on which what a piece does to the state matters: with fast decays nothing comes through."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rwkv_train.verification.tolerances import relative_rms
from tests.ops.native_cases import Case, make_case, sums

# The least and the largest w; RWKV-7's decay is 1 to ten digits at -20.
SLOW = {"wkv4": (-9.0, -6.0), "wkv5": (-10.0, -6.0), "wkv6": (-10.0, -6.0), "wkv7": (-20.0, -4.0)}


def slow_case(
    op: str, batch: int, time: int, heads: int, size: int, *, seed: int = 0, reset: bool = False
) -> Case:
    """`make_case` with slow decays; RWKV-7's rates are those of a model, at most 1."""
    case = make_case(op, batch, time, heads, size, seed=seed, reset=reset)
    low, high = SLOW[op]
    generator = torch.Generator().manual_seed(seed + 1)
    w = torch.rand(case.inputs["w"].shape, generator=generator, dtype=torch.float64)
    return case.with_inputs(w=low + (high - low) * w)


def without_states(case: Case, *, initial: bool = True, final: bool = True) -> Case:
    """The case from the empty state, and with nothing that depends on the final one."""
    names = case.state_names if initial else ()
    inputs = {name: x for name, x in case.inputs.items() if name not in names}
    return replace(case, inputs=inputs, gstate=() if final else case.gstate)


def with_resets(case: Case, *places: tuple[int, int]) -> Case:
    """The case with document starts at these (row, token) alone."""
    reset = torch.zeros(case.gy.shape[:2], dtype=torch.bool)
    for row, token in places:
        reset[row, token] = True
    return replace(case, reset=reset)


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name; of wkv4's final state those of the sums that it stands for.

    Of the gradients at the borders that of the fold from the operators'.
    """
    count = sum(name.startswith("fold") for name in found)
    found, expected = sums(found), sums(expected)
    names = [name for name in found if not name.startswith(("fold", "border"))]
    assert set(names) == expected.keys()
    result = {name: relative_rms(found[name], expected[name]) for name in names}
    for i in range(1, count + 1):
        result[f"fold {i}"] = relative_rms(found[f"fold {i}"], found[f"border {i}"])
    return result
