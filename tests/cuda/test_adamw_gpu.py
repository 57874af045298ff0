"""AdamW's kernels on a CUDA device, beside the CPU kernels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors, adamw_update, gradient_norm, has_kernel
from tests.cuda.gpu_calls import DEVICE

pytestmark = pytest.mark.gpu

# Below and above a vector of eight and a chunk; many small ones, as a model has.
SHAPES = ((1,), (7, 9), (65536,), (65537,), (3, 4096, 100), *((768,),) * 50)
LIMIT = 1.0


def drawn(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def stepped(
    device: str, of_gradients: torch.dtype, of_weights: torch.dtype
) -> tuple[list[float], AdamwTensors]:
    """Makes three clipped steps; returns the norms and what is there afterwards, on the CPU."""
    parameters = [p.to(device) for p in drawn(torch.float32, 0)]
    moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    steps = [torch.zeros(()) for _ in parameters]
    weights = [torch.empty_like(p, dtype=of_weights) for p in parameters]
    norms = []
    for seed in (1, 2, 3):
        gradients = [g.to(device) for g in drawn(of_gradients, seed)]
        norm = gradient_norm(gradients, backend="native")
        numbers = [1e-3] * len(SHAPES), [0.1] * len(SHAPES), 0.9, 0.99, 1e-18
        tensors = AdamwTensors(parameters, gradients, *moments, steps, weights)
        adamw_update(tensors, AdamwOptions(*numbers, norm, LIMIT), backend="native")
        norms.append(norm.item())
    kept = AdamwTensors(parameters, [], *moments, steps, weights)
    return norms, AdamwTensors(*([x.cpu() for x in kind] for kind in kept))


@pytest.mark.parametrize("of_weights", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("of_gradients", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_steps_equal_those_on_the_cpu(of_gradients, of_weights):
    assert has_kernel(torch.device(DEVICE))
    norms, found = stepped(DEVICE, of_gradients, of_weights)
    exact, expected = stepped("cpu", of_gradients, of_weights)
    assert norms == pytest.approx(exact, rel=1e-6)
    for kind in ("parameters", "exp_avgs", "exp_avg_sqs", "steps"):
        for one, other in zip(getattr(found, kind), getattr(expected, kind)):
            torch.testing.assert_close(one, other, rtol=5e-6, atol=1e-7)
    for parameter, weight in zip(found.parameters, found.weights):
        assert torch.equal(weight, parameter.to(weight.dtype))


def test_two_runs_give_the_same_bits():
    first, second = (stepped(DEVICE, torch.bfloat16, torch.bfloat16) for _ in range(2))
    assert first[0] == second[0]
    for one, other in zip(first[1].parameters, second[1].parameters):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_bad_gradient_reaches_the_norm(value):
    gradients = [g.to(DEVICE) for g in drawn(torch.bfloat16, 1)]
    gradients[4][2, 100, 3] = value
    assert not math.isfinite(gradient_norm(gradients, backend="native"))


def test_nothing_waits_for_the_device():
    gradients = [g.to(DEVICE) for g in drawn(torch.bfloat16, 1)]
    gradient_norm(gradients, backend="native")
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient_norm(gradients, backend="native")
    finally:
        torch.cuda.set_sync_debug_mode("default")
