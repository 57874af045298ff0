"""Gradients that are sums over many rows lose nothing to 16 bits but the rounding of the sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rwkv_train.models.layers import Embedding, Head, HeadNorm, LayerNorm, Linear, starting_state
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.ops.head_loss import Targets
from rwkv_train.ops.wkv6 import wkv6
from tests.helpers import allowed_error, relative_rms
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

BATCH, TIME, WIDTH = 4, 2048, 64
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def normal(*shape: int, seed: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape).normal_(mean, generator=generator)


class Mixes(nn.Module):
    """A norm and two mix vectors, [1, 1, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = ShiftedNorm(WIDTH)
        self.one = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.other = nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.norm(Residual(x), shares=(self.one, self.other)).mixed)


class Decay(nn.Module):
    """w0 [1, 1, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        keys = x.unflatten(-1, (-1, 16))  # [B, T, H, N]
        ones, w = torch.ones_like(keys), torch.zeros_like(keys, dtype=torch.float32)
        base = self.base.view(-1, 16)
        y, _ = wkv6(ones, keys, ones, w, torch.zeros_like(base), base=base)
        return y


class Start(nn.Module):
    """A trained initial state that 8192 rows start from."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.zeros(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        start = starting_state(self.state, None, BATCH * TIME)
        assert start is not None
        return start


class Heads(nn.Module):
    """The group norm, on heads of 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = HeadNorm(WIDTH, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.unflatten(-1, (-1, 16)), torch.ones_like(x))
        return out


MODULES: dict[str, Callable[[], nn.Module]] = {
    "embedding": lambda: Embedding(7, WIDTH),
    "layer norm": lambda: LayerNorm(WIDTH),
    "head norm": Heads,
    "matrix": lambda: Linear(WIDTH, WIDTH),
    "mixes": Mixes,
    "decay": Decay,
    "initial state": Start,
}


def gradients(make: Callable[[], nn.Module], x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of all parameters and of x, in `dtype`, from numbers that 16 bits hold."""
    module = make()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed).bfloat16().half())
    module = module.to(dtype)
    given = x if x.dtype == torch.int64 else x.to(dtype).requires_grad_()
    y = module(given)
    # A mean of one part in four: as gradients of a loss, they do not cancel out.
    y.backward(normal(*y.shape, seed=9, mean=0.25).bfloat16().half().to(y.dtype))
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    if given.grad is not None:
        found["x"] = given.grad
    return found


@half
@pytest.mark.parametrize("name", MODULES)
def test_a_gradient_over_8192_rows_errs_by_one_rounding(name: str, dtype: torch.dtype):
    if name == "embedding":
        x = random_tokens(BATCH, TIME, vocab_size=7)
    else:
        x = normal(BATCH, TIME, WIDTH, seed=5).bfloat16().half()
    exact = gradients(MODULES[name], x, torch.float64)
    for part, found in gradients(MODULES[name], x, dtype).items():
        assert found.dtype == dtype
        assert relative_rms(found, exact[part]) <= allowed_error(exact[part], dtype), part


@half
def test_the_heads_gradient_errs_by_the_roundings_of_its_operands_alone(dtype: torch.dtype):
    x = normal(BATCH, TIME, WIDTH, seed=5).bfloat16().half()
    ids = random_tokens(BATCH, TIME, vocab_size=50)
    found = {}
    for kind in (dtype, torch.float64):
        head = Head(WIDTH, 50).to(kind)
        with torch.no_grad():
            head.weight.copy_(normal(50, WIDTH, seed=1).bfloat16().half() / 8)
        loss = head(x.to(kind), Targets(ids, rows=1024))
        # a loss scale, without which fp16 has nothing left
        (loss * 256).backward()
        found[kind] = head.weight.grad
    exact = found[torch.float64]
    # The logits are rounded once, their gradients once, and the sum of the products once.
    assert relative_rms(found[dtype], exact) <= 3 * relative_rms(exact.to(dtype), exact)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_of_a_bf16_model_errs_as_under_autocast(version: str):
    # Long rows: where one starts, a head's spread may be near the norm's eps, and then the rounding
    # of r and k comes out forty times as large, in either kind of model by chance.
    tokens = random_tokens(2, 1024)
    targets = Targets(tokens.roll(-1, 1))
    models = {name: tiny_model(version).bfloat16() for name in ("exact", "bf16", "autocast")}
    models["exact"].double()
    # Autocast keeps parameters and their gradients in fp32.
    models["autocast"].float()
    for name, model in models.items():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "autocast"):
            loss = model.loss(tokens, targets)
        loss.backward()
    table = {
        name: [parameter.grad for parameter in parameters]
        for name, *parameters in zip(
            dict(models["exact"].named_parameters()), *(m.parameters() for m in models.values())
        )
        if parameters[0].requires_grad
    }
    assert len(table) > 20
    for name, (exact, bf16, autocast) in table.items():
        one_rounding = relative_rms(exact.bfloat16(), exact)
        limit = 3 * (relative_rms(autocast, exact) + one_rounding)
        assert relative_rms(bf16, exact) <= limit, name
