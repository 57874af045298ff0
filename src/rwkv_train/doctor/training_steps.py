"""Checks that every version of RWKV trains on every device, and how fast.

A small model learns one batch by heart: its loss is finite and falls. Its speed is told in tokens
and as the share of what plain products of torch reach with the same shapes a moment before and
after, so that a busy machine slows both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rwkv_train.config.versions import VERSIONS
from rwkv_train.doctor.findings import Answers, Finding, fault, good, in_one_line, warning
from rwkv_train.processors import prepare_threads

if TYPE_CHECKING:
    import torch

    from rwkv_train.training.whole_step import TimedShape

# Steps of a version: as many as fit into the time, at least so many.
SECONDS, FEWEST_STEPS = 2.0, 6
# Layers, width, vocabulary, tokens of a sample, samples.
CPU_SHAPE, CARD_SHAPE = (2, 256, 1024, 128, 4), (4, 1024, 8192, 512, 8)
LEARNING_RATE = 1e-3
# A sound machine reaches several times as much (benchmarks/RESULTS.md).
LOW_SHARE = 0.05
_PRODUCTS = 5
_REBUILD = "rwkv-doctor --only kernels, and report it with the header of a run"


class _Times(NamedTuple):
    """Losses of the steps, the seconds of the fastest, and the FLOP/s of products around them."""

    losses: list[float]
    step_s: float
    product_flops_per_s: float
    step_flops: float


def check_training(folder: Path) -> Answers:
    """Yields tokens per second of every version on every device, and whether it learns."""
    prepare_threads()
    yield "import torch"
    import torch

    from rwkv_train.training.fp32_products import choose_fp32_products
    from rwkv_train.training.start.bf16_speed import bf16_speed
    from rwkv_train.training.whole_step import TimedShape

    choose_fp32_products()
    shapes = {"cpu": TimedShape(*CPU_SHAPE)}
    if torch.cuda.is_available():
        shapes["cuda"] = TimedShape(*CARD_SHAPE)
    for name, shape in shapes.items():
        device = torch.device(name)
        dtype = torch.bfloat16 if name == "cuda" and _has_bf16() else torch.float32
        for version in VERSIONS:
            yield f"train RWKV-{version} on {name}"
            yield _judge(version, device, dtype, shape)
    yield "time bf16"
    speed = bf16_speed()
    yield good(f"bf16 products run at {speed:.1f} times the speed of fp32 on this processor")


def _judge(version: str, device: torch.device, dtype: torch.dtype, shape: TimedShape) -> Finding:
    place = f"RWKV-{version} on {device.type}"
    try:
        times = _train(version, device, dtype, shape)
    except Exception as error:
        told = in_one_line(f"{type(error).__name__}: {error}")
        return fault(f"{place} does not train: {told}", _REBUILD)
    first, last = times.losses[0], times.losses[-1]
    share = times.step_flops / times.step_s / times.product_flops_per_s
    measured = {
        "version": version,
        "device": device.type,
        "tokens_per_s": round(shape.tokens / times.step_s),
        "product_share": round(share, 4),
        "losses": [round(loss, 4) for loss in (first, last)],
    }
    if not all(map(math.isfinite, times.losses)):
        return fault(f"{place}: a loss that is no number", _REBUILD, **measured)
    if last >= first:
        return fault(
            f"{place}: the loss does not fall ({first:.3f} to {last:.3f} in "
            f"{len(times.losses)} steps on one batch)",
            _REBUILD,
            **measured,
        )
    told = (
        f"{place}: {measured['tokens_per_s']} tokens/s ({shape}), {share:.0%} of what products "
        f"reach; loss {first:.2f} to {last:.2f}"
    )
    if share < LOW_SHARE:
        return warning(told, "see the checks load, processors and kernels", **measured)
    return good(told, **measured)


def _train(version: str, device: torch.device, dtype: torch.dtype, shape: TimedShape) -> _Times:
    """Trains a small model of a version on one batch for a moment."""
    import torch

    from rwkv_train.training import whole_step as whole

    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        model = whole.initialized_model(version, shape, device)
        product, flops = whole.plain_product(device, dtype, shape)
        optimizer = whole.own_optimizer(model, masters=False, lr=LEARNING_RATE)
        losses: list[torch.Tensor] = []

        def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            value = whole.own_loss(model)(tokens, targets)
            losses.append(value.detach())
            return value

        autocast = None if dtype == torch.float32 else dtype
        step = whole.training_step(loss, optimizer, whole.random_batch(shape, device), autocast)
        before = _fastest(product, device)
        fastest = _fastest_step(step, device)
        after = _fastest(product, device)
        counted = whole.product_flops(model, shape, ["emb.weight"])
        values = [float(value) for value in losses]
        return _Times(values, fastest, flops / min(before, after), counted)
    finally:
        torch.set_rng_state(generator_state)


def _fastest_step(step: Callable[[], None], device: torch.device) -> float:
    from rwkv_train.training.whole_step import seconds_of

    began = time.monotonic()
    seconds: list[float] = []
    while len(seconds) < FEWEST_STEPS or time.monotonic() - began < SECONDS:
        seconds.append(seconds_of(step, device))
    # The first one also chooses kernels and takes memory.
    return min(seconds[1:])


def _fastest(product: Callable[[], object], device: torch.device) -> float:
    from rwkv_train.training.whole_step import seconds_of

    return min(seconds_of(product, device) for _ in range(_PRODUCTS))


def _has_bf16() -> bool:
    from rwkv_train.find_gpus import find_gpus

    return find_gpus().has_bf16
