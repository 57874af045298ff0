"""Slices of logits to try the CUDA kernels of the head's loss on, and their results on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops.head_loss import reference
from tests.cuda.host_kernels import DTYPE_CODES, Guarded, HostKernels, Interface, surrounded

INTERFACE = Interface(
    "head_loss",
    "HeadLossRows",
    "HeadLossMean",
    (
        "rows",
        "vocabulary",
        "dtype",
        "gradient_dtype",
        "extra_dtype",
        "wants_gradient",
        "given_total",
    ),
    ("logits", "targets", "mask", "extra", "extra_gradient", "losses"),
    ("losses", "mask", "loss", "total", "sums"),
    with_options=False,
    steps=("rows", "mean"),
)


class Slice(NamedTuple):
    """Logits [n, V] with what belongs to them; extra and mask may be None."""

    logits: Tensor
    targets: Tensor
    mask: Tensor | None
    extra: Tensor | None


def make_slice(rows: int, vocabulary: int, *, options: bool = True, seed: int = 0) -> Slice:
    """Returns normally distributed logits of deviation 3, in fp64; options: a mask and extra."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(vocabulary, (rows,), generator=generator)
    mask = normal(rows).abs() * (torch.arange(rows) % 3 > 0) if options else None
    extra = normal(rows, vocabulary) if options else None
    return Slice(3 * normal(rows, vocabulary), targets, mask, extra)


def rounded_slice(given: Slice, dtype: torch.dtype, extra: torch.dtype) -> Slice:
    """Returns the slice with all numbers as the kernels receive them, in fp64."""
    return Slice(
        given.logits.to(dtype).double(),
        given.targets,
        None if given.mask is None else given.mask.float().double(),
        None if given.extra is None else given.extra.to(extra).double(),
    )


def expected_slice_results(given: Slice) -> dict[str, Tensor]:
    """Computes losses and gradients in fp64, and the mean over the tokens."""
    logits, losses = given.logits.clone(), torch.empty(len(given.targets), dtype=torch.float64)
    extra_gradient = None if given.extra is None else torch.empty_like(given.extra)
    arguments = (logits, given.targets, given.mask, given.extra, extra_gradient, losses)
    found = {"gradient": reference.run("rows", *arguments, torch.float64), "losses": losses}
    if extra_gradient is not None:
        found["extra_gradient"] = extra_gradient
    found["loss"], found["total"] = reference.run("mean", losses, given.mask, None)
    return found


def slice_kernel_results(
    kernels: HostKernels,
    given: Slice,
    dtype: torch.dtype,
    gradient: torch.dtype | None = None,
    extra: torch.dtype = torch.float32,
    *,
    wants_gradient: bool = True,
) -> dict[str, Tensor]:
    """Runs both kernels; around every input lie NaN, around every output guard bytes."""
    gradient = gradient or dtype
    rows, vocabulary = given.logits.shape
    codes = (DTYPE_CODES[kind] for kind in (dtype, gradient, extra))
    sizes = (rows, vocabulary, *codes, int(wants_gradient), 0.0)
    outputs = {
        "logits": Guarded((rows, vocabulary), dtype),
        "losses": Guarded((rows,), torch.float32),
    }
    outputs["logits"].tensor.copy_(given.logits)
    if given.extra is not None:
        outputs["extra_gradient"] = Guarded((rows, vocabulary), extra)
    mask = None if given.mask is None else surrounded(given.mask.float())
    given_extra = None if given.extra is None else surrounded(given.extra.to(extra))
    tensors = {name: buffer.tensor for name, buffer in outputs.items()}
    if not wants_gradient:
        tensors.pop("extra_gradient", None)
    inputs = {"targets": given.targets, "mask": mask, "extra": given_extra}
    kernels.forward(sizes, {"extra_gradient": None, **inputs, **tensors})
    scalars = {name: Guarded((1,), torch.float32) for name in ("loss", "total")}
    scalars["sums"] = Guarded((2, -(-rows // 64)), torch.float64)
    means = {name: buffer.tensor for name, buffer in scalars.items()}
    wide = (*sizes[:2], *3 * [DTYPE_CODES[torch.float32]], 0, 0.0)
    kernels.backward(wide, {"losses": tensors["losses"], "mask": mask, **means})
    for name, buffer in {**outputs, **scalars}.items():
        buffer.check(name)
    memory = tensors.pop("logits")
    tensors["gradient"] = memory.view(gradient)[:, :vocabulary]
    return {**tensors, "loss": means["loss"][0], "total": means["total"][0]}
