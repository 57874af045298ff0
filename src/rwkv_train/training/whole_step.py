"""The whole training step that benchmarks and `rwkv_train.doctor` time: a model, its step.

A step is forward, backward, AdamW and the release of the gradients, on random tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize, parameter_groups
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from rwkv_train.training.fp32_products import choose_fp32_products
from rwkv_train.training.optim.fused_adamw import FusedAdamW
from rwkv_train.training.optim.master_weights import round_weights

# Inputs and targets, both [B, T], to the mean loss.
Loss = Callable[[Tensor, Tensor], Tensor]


class TimedShape(NamedTuple):
    """Sizes of a model and of its batch."""

    layers: int
    width: int
    vocab: int
    ctx_len: int
    batch: int

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.batch * self.ctx_len

    def __str__(self) -> str:
        return f"L{self.layers} D{self.width} V{self.vocab}, {self.batch} x {self.ctx_len}"


def own_sizes(version: str, shape: TimedShape) -> ResolvedModel:
    """Returns the sizes of our model of a version."""
    return complete_model(
        ModelConfig(
            rwkv_version=version, n_layer=shape.layers, n_embd=shape.width, vocab_size=shape.vocab
        )
    )


def initialized_model(
    version: str,
    shape: TimedShape,
    device: torch.device,
    backend: str = "auto",
    grad_cp: bool = False,
) -> RWKV:
    """Returns our model of a version with its initial values."""
    sizes = own_sizes(version, shape)
    model = build_model(sizes, wkv_backend=backend, grad_cp=grad_cp).to(device)
    initialize(model, seed=0, lr_init=6e-4)
    return model


def own_loss(model: RWKV) -> Loss:
    """Returns the loss of our model as it is trained with."""
    return lambda tokens, targets: model.loss(tokens, Targets(targets))


def own_optimizer(model: RWKV, *, masters: bool, lr: float = 1e-5) -> torch.optim.Optimizer:
    """Returns the optimizer that training takes; masters: of weights that become bf16 here."""
    values = round_weights(model, sums_in_fp32=False) if masters else None
    groups = parameter_groups(model, weight_decay=0.001)
    described = [{"params": g.parameters, "weight_decay": g.weight_decay} for g in groups]
    return FusedAdamW(described, masters=values, lr=lr, fused=True)


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Returns torch's own fused AdamW over whatever type the weights have."""
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.001, fused=True)


def random_batch(shape: TimedShape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets, the targets one token further on."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.ctx_len + 1)
    tokens = torch.randint(shape.vocab, size, generator=generator).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def training_step(
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    autocast: torch.dtype | None,
) -> Callable[[], None]:
    """Returns a function that makes a step.

    autocast: of the products in a model with fp32 weights, None for none.
    """
    device = batch[0].device.type

    def step() -> None:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            value = loss(*batch)
        # torch leaves the function without types.
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def wait(device: torch.device) -> None:
    """Returns once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(
    work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Returns how long one call takes by `clock`."""
    wait(device)
    began = clock()
    work()
    wait(device)
    return clock() - began


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the median duration of `work` after one warm-up."""
    times = [seconds_of(work, device) for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def plain_product(
    device: torch.device, dtype: torch.dtype, shape: TimedShape
) -> tuple[Callable[[], Tensor], float]:
    """Returns a product of [tokens, width] x [width, 4 width], and its FLOPs.

    The result is written where the one before was: a warm result.
    """
    a = torch.randn(shape.tokens, shape.width, device=device).to(dtype)
    b = torch.randn(shape.width, 4 * shape.width, device=device).to(dtype)
    result = torch.empty(shape.tokens, 4 * shape.width, device=device, dtype=dtype)
    return lambda: torch.mm(a, b, out=result), 2.0 * shape.tokens * shape.width**2 * 4


def products_chosen(device: torch.device, asked: str) -> str:
    """Sets who multiplies fp32 matrices and returns it; asked: "chosen", as train.py, or "torch".

    For the whole process, a GPU's are left as they are.
    """
    chosen = choose_fp32_products() if device.type == "cpu" and asked == "chosen" else None
    return chosen or "as torch takes them"


def product_flops(model: nn.Module, shape: TimedShape, lookups: Iterable[str]) -> float:
    """Returns the FLOPs of a step's products with weights.

    lookups: the parameters that are read and not multiplied.
    """
    skipped = set(lookups)
    counted = (p.numel() for n, p in model.named_parameters() if p.dim() >= 2 and n not in skipped)
    return 6.0 * sum(counted) * shape.tokens


def dtype_named(precision: str) -> torch.dtype:
    """Returns the torch type of a precision's name."""
    return DTYPES[precision]
