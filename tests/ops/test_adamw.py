"""AdamW in two passes: the native kernels and the reference beside torch's AdamW and clipping."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.adamw import (
    BACKENDS,
    AdamwOptions,
    AdamwTensors,
    adamw_update,
    gradient_norm,
    has_kernel,
)

# Below and above a vector, a run of 1024 elements and a chunk of 65536.
SHAPES = ((), (1,), (7, 9), (1023,), (1025,), (65536,), (65537,), (0,), (3, 5, 64))
RATES = (1e-3, 3e-3)
DECAYS = (0.1, 0.0)
BETA1, BETA2, EPS = 0.9, 0.99, 1e-18


class Run(NamedTuple):
    """Norms of some steps and what is there after them."""

    norms: list[float]
    tensors: AdamwTensors


@pytest.fixture(autouse=True)
def one(one_thread: None, poisoned_memory: None) -> None:
    """One thread, and NaN in fresh memory."""


def require_native() -> None:
    if not has_kernel(torch.device("cpu")):
        pytest.skip("needs a C++ compiler")


def drawn(dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Returns a tensor of every shape, each of another size of numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [(x * 10.0 ** -(i % 4)).to(dtype) for i, x in enumerate(values)]


def options_of(norm: Tensor | None, limit: float) -> AdamwOptions:
    of_each = [i % 2 for i in range(len(SHAPES))]
    rates, decays = [RATES[i] for i in of_each], [DECAYS[i] for i in of_each]
    return AdamwOptions(rates, decays, BETA1, BETA2, EPS, norm, limit)


def run(
    backend: str,
    dtype: torch.dtype,
    gradients: list[list[Tensor]],
    *,
    limit: float = 1.0,
    weights: torch.dtype | None = None,
) -> Run:
    """Makes a step with each list of gradients, from fixed parameters."""
    parameters = drawn(dtype, 0)
    moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    steps = [torch.zeros(()) for _ in parameters]
    rounded = [] if weights is None else [torch.empty_like(p, dtype=weights) for p in parameters]
    found = Run([], AdamwTensors(parameters, [], *moments, steps, rounded))
    for given in gradients:
        norm = gradient_norm(given, backend=backend)
        options = options_of(norm if limit else None, limit)
        adamw_update(found.tensors._replace(gradients=given), options, backend=backend)
        found.norms.append(norm.item())
    return found


def torchs(gradients: list[list[Tensor]], limit: float = 1.0) -> Run:
    """Makes the same steps with torch's AdamW and clip_grad_norm_, in fp64."""
    leaves = [torch.nn.Parameter(p) for p in drawn(torch.float64, 0)]
    groups = [{"params": leaves[i::2], "lr": RATES[i], "weight_decay": DECAYS[i]} for i in range(2)]
    optimizer = torch.optim.AdamW(groups, betas=(BETA1, BETA2), eps=EPS, foreach=False)
    norms = []
    for given in gradients:
        for leaf, gradient in zip(leaves, given):
            leaf.grad = gradient.double()
        norms.append(torch.nn.utils.clip_grad_norm_(leaves, limit or math.inf).item())
        optimizer.step()
    states = [optimizer.state[leaf] for leaf in leaves]
    kept = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]
    return Run(norms, AdamwTensors([leaf.detach() for leaf in leaves], [], *kept))


def assert_close(found: Run, exact: Run, tolerance: float) -> None:
    assert found.norms == pytest.approx(exact.norms, rel=tolerance)
    for kind in ("parameters", "exp_avgs", "exp_avg_sqs", "steps"):
        for one, other in zip(getattr(found.tensors, kind), getattr(exact.tensors, kind)):
            error = torch.linalg.vector_norm(one.double() - other.double())
            assert error <= tolerance * torch.linalg.vector_norm(other.double()), kind


@pytest.mark.parametrize("limit", (1.0, 1e9, 0.0))
@pytest.mark.parametrize(
    "dtype, of_gradients, tolerance",
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.float32, torch.bfloat16, 1e-5),
        (torch.float32, torch.float16, 1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ("native", "reference"))
def test_steps_equal_those_of_torch(backend, dtype, of_gradients, tolerance, limit):
    if backend == "native":
        require_native()
    gradients = [drawn(of_gradients, seed) for seed in (1, 2, 3)]
    found = run(backend, dtype, gradients, limit=limit)
    # Moments of 1e-3 added up: fp32's 6e-8 each, relative to what is left of the sum.
    assert_close(found, torchs(gradients, limit), tolerance)


@pytest.mark.parametrize("weights", (torch.bfloat16, torch.float16), ids=str)
def test_weights_are_the_parameters_rounded_once(weights):
    require_native()
    gradients = [drawn(torch.bfloat16, seed) for seed in (1, 2)]
    found = run("native", torch.float32, gradients, weights=weights)
    plain = run("native", torch.float32, gradients)
    for parameter, weight, alone in zip(
        found.tensors.parameters, found.tensors.weights, plain.tensors.parameters
    ):
        assert torch.equal(weight, parameter.to(weights)) and torch.equal(parameter, alone)


def test_masters_keep_what_bf16_weights_would_lose():
    parameter, weight = torch.ones(64), torch.ones(64, dtype=torch.bfloat16)
    tensors = AdamwTensors(
        [parameter], [torch.ones(64)], [torch.zeros(64)], [torch.zeros(64)], [torch.zeros(())]
    )._replace(weights=[weight])
    for _ in range(8):
        adamw_update(tensors, AdamwOptions([1e-3], [0.0], 0.0, 0.0, 0.0))
    # Eight times 1/1000: each alone is less than half the spacing of bf16 below 1, 1/256.
    assert torch.allclose(parameter, torch.tensor(0.992)) and (weight == 0.9921875).all()


def test_any_number_of_threads_gives_the_same_bits():
    require_native()
    gradients = [drawn(torch.float32, seed) for seed in (1, 2)]
    first = run("native", torch.float32, gradients)
    torch.set_num_threads(3)
    second = run("native", torch.float32, gradients)
    assert first.norms == second.norms
    for one, other in zip(first.tensors.parameters, second.tensors.parameters):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ("native", "reference"))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
def test_a_single_bad_gradient_reaches_the_norm(backend, value):
    if backend == "native":
        require_native()
    gradients = drawn(torch.float32, 1)
    gradients[6][65536] = value
    assert not math.isfinite(gradient_norm(gradients, backend=backend))


def test_gradients_that_are_not_contiguous_are_served():
    require_native()
    plain = [drawn(torch.float32, 1)]
    strided = [[torch.stack((g, g), -1)[..., 0] for g in plain[0]]]
    assert not strided[0][3].is_contiguous()
    first, second = run("native", torch.float32, plain), run("native", torch.float32, strided)
    assert first.norms == second.norms
    for one, other in zip(first.tensors.parameters, second.tensors.parameters):
        assert torch.equal(one, other)


def test_gradients_stay_as_they_are_when_they_are_clipped():
    gradients = drawn(torch.float32, 1)
    before = [g.clone() for g in gradients]
    run("auto", torch.float32, [gradients], limit=1e-3)
    assert all(torch.equal(one, other) for one, other in zip(gradients, before))


def test_torch_accepts_what_the_schema_says_is_changed():
    require_native()
    # opcheck draws random numbers of its own for what it compares.
    torch.use_deterministic_algorithms(False)
    parameters = drawn(torch.float32, 0)[1:4]
    tensors = [[x.clone() for x in parameters] for _ in range(4)]
    steps = [torch.zeros(()) for _ in parameters]
    norm = gradient_norm(tensors[0])
    numbers = ([1e-3] * 3, [0.1] * 3, BETA1, BETA2, EPS, norm, 1.0)
    arguments = (parameters, tensors[0], tensors[1], tensors[2], tensors[3], steps, *numbers)
    torch.library.opcheck(torch.ops.rwkv.adamw_update, arguments, test_utils="test_schema")
    torch.library.opcheck(torch.ops.rwkv.adamw_norm, (tensors[0],), test_utils="test_schema")
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"gradients": [torch.zeros(2)]}, "gradient must be [as the parameter] = [3], got [2]"),
        ({"exp_avgs": [torch.zeros(3).double()]}, "exp_avg must have dtype Float, got Double"),
        ({"steps": [torch.zeros((), dtype=torch.int64)]}, "step must have dtype Float, got Long"),
        ({"parameters": [torch.zeros(3, 2)[:, 0]]}, "a parameter must be contiguous"),
    ],
)
def test_a_wrong_tensor_is_named(changed, message):
    require_native()
    tensors = AdamwTensors(*([torch.zeros(3)] for _ in range(4)), [torch.zeros(())])
    with pytest.raises(RuntimeError) as error:
        adamw_update(tensors._replace(**changed), AdamwOptions([0.1], [0.1], 0.9, 0.9, 0.0))
    assert message in str(error.value)


def test_lists_of_different_lengths_and_no_gradients_are_refused():
    tensors = AdamwTensors([torch.zeros(1)], [], [], [], [])
    with pytest.raises(BackendError, match="lists of 0, 1 tensors"):
        adamw_update(tensors, AdamwOptions([0.1], [0.1], 0.9, 0.9, 0.0))
    with pytest.raises(BackendError, match="no gradients"):
        gradient_norm([])
    assert [backend.name for backend in BACKENDS] == ["native", "reference"]
