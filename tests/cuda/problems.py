"""Operator calls to try the CUDA kernels on: random inputs, fp64 results, the kernels' results."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tests.cuda.host_kernels import DTYPE_CODES, Guarded, HostKernels, Interface, tensors_of
from tests.helpers import STORED_ONCE, TOLERANCE, relative_rms
from tests.ops.native_cases import INPUTS

_HEAD_SIZES = (
    "batch",
    "time",
    "heads",
    "size",
    "checkpoint_interval",
    "kept",
    "dtype",
    "w_dtype",
    "gw_dtype",
)


def _interface(op: str, struct: str, launchers: str = "") -> Interface:
    inputs = tuple(INPUTS[op])
    gradients = tuple(f"g{name}" for name in (*inputs, "state"))
    bonus = ("bonus", "s"), ("bonus", "gs", "gbonus")
    more, more_backward = bonus if op == "wkv7" else ((), ())
    return Interface(
        op,
        f"{struct}Forward",
        f"{struct}Backward",
        _HEAD_SIZES,
        (*inputs, "state", "reset", "y", "final_state", "checkpoints", *more),
        (*inputs, "reset", "checkpoints", "gy", "gfinal_state", *gradients, *more_backward),
        launchers=launchers,
        backward_sizes=("with_gstate",),
    )


INTERFACES = {
    "wkv4": _interface("wkv4", "Wkv4")._replace(
        sizes=("batch", "time", "width", "checkpoint_interval", "kept", "dtype"), backward_sizes=()
    ),
    "wkv5": _interface("wkv5", "Wkv5_6", "rwkv::Wkv5_6Launchers<false>::"),
    "wkv6": _interface("wkv6", "Wkv5_6", "rwkv::Wkv5_6Launchers<true>::"),
    "wkv7": _interface("wkv7", "Wkv7"),
}
# Operators with a matrix state; wkv4's is three rows: aa, bb, pp.
MATRIX_OPS = tuple(op for op in INTERFACES if op != "wkv4")
# Inputs whose gradient the kernels leave per batch row.
PER_BATCH_ROW = {"wkv4": ("w", "u"), "wkv5": ("w", "u"), "wkv6": ("u", "base"), "wkv7": ("base",)}

# Largest relative RMS errors, of the kernels by chunks, of sums of which little is left: one over
# all tokens of a channel's gw (measured, where a single channel remembers: 3.2e-5, 2.6e-5, 4.9e-5).
CANCELLED_SUM_ERRORS = {"wkv5": {"gw": 5e-5}, "wkv6": {"gbase": 5e-5}, "wkv7": {"gbase": 6e-5}}


def interval_of(op: str, wanted: int = 64) -> int:
    """Returns the tokens between kept states: `wanted`, but for wkv4 always 16.

    wkv4's states are small, so that its kernels keep one before every chunk.
    """
    return 16 if op == "wkv4" else wanted


class Shape(NamedTuple):
    """B, T, H, N; wkv4 has H N channels and no heads."""

    batch: int
    time: int
    heads: int
    size: int

    def sequence(self, op: str) -> tuple[int, ...]:
        """Returns the shape of k, v and the like."""
        if op == "wkv4":
            return self.batch, self.time, self.heads * self.size
        return tuple(self)

    def state(self, op: str, *kept: int) -> tuple[int, ...]:
        """Returns the shape of a state, or of `kept` states per head (wkv4: per batch row)."""
        if op == "wkv4":
            return self.batch, *kept, 3, self.heads * self.size
        return self.batch, self.heads, *kept, self.size, self.size

    def row(self, op: str) -> tuple[int, ...]:
        """Returns the shape of a parameter that all tokens share."""
        return self.sequence(op)[2:]


class Problem(NamedTuple):
    """One call with everything that its backward pass is given.

    inputs: by name, in the order of the operator's `reference.run`, without state and reset.
    bonus, gs: of wkv7, bonus and what arrives as the gradient of s.
    """

    op: str
    shape: Shape
    inputs: dict[str, Tensor]
    state: Tensor | None
    reset: Tensor | None
    gy: Tensor
    gfinal_state: Tensor | None
    bonus: Tensor | None = None
    gs: Tensor | None = None


def make_problem(
    op: str,
    shape: Shape,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    with_state: bool = True,
    with_reset: bool = True,
    decay_shift: float = -1.0,
    with_bonus: bool = True,
) -> Problem:
    """Draws normal inputs; `w` about decay_shift, every fifth token starts a document."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, to: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(to)

    sequence, row, square = shape.sequence(op), shape.row(op), shape.state(op)
    if op == "wkv7":
        inputs = _delta_inputs(shape, dtype, normal, decay_shift)
    else:
        inputs = {name: normal(*sequence, to=dtype) for name in INPUTS[op] if name != "base"}
        w = normal(*(sequence if op == "wkv6" else row)) * 2 + decay_shift
        inputs |= {"w": w, "u": normal(*row)}
    if "base" in INPUTS[op]:
        inputs["base"] = normal(*row) / 10
    reset = torch.rand(shape.batch, shape.time, generator=generator) < 0.2
    state, gfinal_state = normal(*square), normal(*square)
    if op == "wkv4":
        # bb sums positive weights; the scale pp has no gradient of its own
        state[:, 1].exp_()
        gfinal_state[:, 2] = 0
    return Problem(
        op,
        shape,
        inputs,
        state if with_state else None,
        reset if with_reset else None,
        normal(*sequence, to=dtype),
        gfinal_state if with_state else None,
        *((normal(*row), normal(*sequence[:3])) if op == "wkv7" and with_bonus else ()),
    )


def expected_results(problem: Problem) -> dict[str, Tensor]:
    """Computes y, final_state and every gradient in fp64, from the reference and autograd.

    wkv4's final state is given as its two sums.
    """
    reference = importlib.import_module(f"rwkv_train.ops.{problem.op}.reference")
    leaves = {name: x.double().requires_grad_() for name, x in problem.inputs.items()}
    given = _empty_state(problem) if problem.state is None else problem.state
    state = given.double().requires_grad_()
    if problem.op == "wkv4":
        y, parts = reference.run(*leaves.values(), state.unbind(1), problem.reset)
        final_state = torch.stack(parts, 1)
    else:
        named = {}
        if problem.bonus is not None:
            named["bonus"] = leaves["bonus"] = problem.bonus.double().requires_grad_()
        inputs = [leaves[name] for name in problem.inputs]
        y, final_state, *more = reference.run(*inputs, state, problem.reset, **named)
    loss = (y * problem.gy.double()).sum()
    if problem.bonus is not None:
        (s,) = more
        loss = loss + (s * problem.gs.double()).sum()
    if problem.gfinal_state is not None:
        loss = loss + (final_state * problem.gfinal_state.double()).sum()
    gradients = torch.autograd.grad(loss, [*leaves.values(), state], materialize_grads=True)
    names = [f"g{name}" for name in (*leaves, "state")]
    results = {"y": y.detach(), "final_state": final_state.detach()} | dict(zip(names, gradients))
    results |= {} if problem.bonus is None else {"s": s.detach()}
    return _with_sums(problem.op, results)


def kernel_results(
    kernels: HostKernels,
    problem: Problem,
    *options: int,
    checkpoint_interval: int = 16,
    gw_dtype: torch.dtype = torch.float32,
    with_states: bool = True,
) -> dict[str, Tensor]:
    """Runs the kernels and returns the same results, each in its own dtype.

    Gradients that the kernels leave per batch row are summed over the batch.
    with_states: whether the final state and the gradient of the state are wanted; without they are
    left out, and may not be written.

    options: in the order of LaunchOptions.
    """
    op, shape, inputs, dtype = problem.op, problem.shape, problem.inputs, problem.gy.dtype
    kept = -(-shape.time // checkpoint_interval)
    sizes = (
        *shape.sequence(op),
        checkpoint_interval,
        kept,
        DTYPE_CODES[dtype],
        DTYPE_CODES[torch.float32],
        DTYPE_CODES[gw_dtype],
        int(with_states),
    )
    state = shape.state(op)
    results = {
        "y": Guarded(problem.gy.shape, dtype),
        "final_state": Guarded(state, torch.float32),
        "checkpoints": Guarded(shape.state(op, kept), torch.float32),
    }
    has_bonus = problem.bonus is not None
    if has_bonus:
        results["s"] = Guarded(problem.gy.shape[:3], torch.float32)
    given = {**inputs, "reset": problem.reset} | ({"bonus": problem.bonus} if op == "wkv7" else {})
    given_first = {**given, "state": problem.state, **tensors_of(results)}
    if not with_states:
        given_first["final_state"] = None
    if op == "wkv7":
        given_first.setdefault("s", None)
    kernels.forward(sizes, given_first, *options)
    gradients = {f"g{name}": Guarded(x.shape, x.dtype) for name, x in inputs.items()}
    if op in ("wkv6", "wkv7"):
        gradients["gw"] = Guarded(inputs["w"].shape, gw_dtype)
    for name in PER_BATCH_ROW.get(op, ()):
        gradients[f"g{name}"] = Guarded((shape.batch, *shape.row(op)), torch.float32)
    gradients["gstate"] = Guarded(state, torch.float32)
    if has_bonus:
        gradients["gbonus"] = Guarded((shape.batch, *shape.row(op)), torch.float32)
    more = {"gy": problem.gy, "gfinal_state": problem.gfinal_state}
    more["checkpoints"] = results["checkpoints"].tensor
    if op == "wkv7":
        more |= {"gs": problem.gs, "gbonus": None}
    kernels.backward(sizes, {**given, **more, **tensors_of(gradients)}, *options)
    for name, buffer in {**results, **gradients}.items():
        buffer.check(name)
    found = tensors_of(results) | tensors_of(gradients)
    del found["checkpoints"]
    if not with_states:
        # Ranges of tokens, which only a small working memory makes, hand gstate on.
        written = [name for name in ("final_state", "gstate") if not found.pop(name).isnan().all()]
        assert written == [] or (written == ["gstate"] and len(options) > 1)
    for name in (*PER_BATCH_ROW.get(op, ()), *(("bonus",) if has_bonus else ())):
        found[f"g{name}"] = found[f"g{name}"].sum(0)
    return _with_sums(op, found)


def assert_results_match(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    sum_errors: Mapping[str, float] | None = None,
) -> None:
    """Fails, naming the result, where it is off by more than its parts explain.

    These are fp32 sums, in `sum_errors` those with a larger relative RMS error than usual, and one
    rounding to the result's dtype.
    """
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        error = relative_rms(found[name], exact)
        rounding = relative_rms(exact.to(found[name].dtype), exact)
        sum_error = (sum_errors or {}).get(name, TOLERANCE[torch.float32])
        limit = sum_error + STORED_ONCE * rounding
        assert error <= limit, f"{name}: relative RMS error {error:.2e} > {limit:.2e}"


def _empty_state(problem: Problem) -> Tensor:
    empty = torch.zeros(problem.shape.state(problem.op))
    if problem.op == "wkv4":
        empty[:, 2] = -1e38
    return empty


def _with_sums(op: str, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives wkv4's final state as the sums that it stands for: the scale itself is arbitrary."""
    if op == "wkv4":
        aa, bb, pp = results["final_state"].unbind(1)
        results["final_state"] = torch.stack([aa * pp.exp(), bb * pp.exp()], 1)
    return results


def _delta_inputs(
    shape: Shape, dtype: torch.dtype, normal: Callable[..., Tensor], decay_shift: float
) -> dict[str, Tensor]:
    """Draws a = -kappa and b = kappa * rate, as the model gives them: the state stays bounded."""
    kappa = torch.nn.functional.normalize(normal(*shape), dim=-1)
    return {
        "r": normal(*shape, to=dtype),
        "w": normal(*shape) * 2 + decay_shift,
        "k": normal(*shape, to=dtype),
        "v": normal(*shape, to=dtype),
        "a": -kappa.to(dtype),
        "b": (kappa * torch.sigmoid(normal(*shape))).to(dtype),
    }
