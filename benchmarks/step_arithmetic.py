"""What a step would take on an H100 by arithmetic: `python -m benchmarks.step_arithmetic`.

No card and no data: the model's own code runs on tensors without memory, and what every operator
would read, write and multiply is added up. A product takes the longer of its FLOPs and its bytes,
everything else its bytes, WKV what cuda/README.md counts for its kernels; the host takes its time
for every launch beside that. The table is written between two marks of cuda/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.step_operators import TrafficMode
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import build_model
from rwkv_train.models.residual import Residual
from rwkv_train.planning.cards import CARDS
from rwkv_train.planning.flops import last_product
from rwkv_train.planning.parameter_table import tensor_shapes
from rwkv_train.planning.step_time import (
    COPY_SHARE,
    GAP_SECONDS,
    HOST_SECONDS,
    LAYER_TRAFFIC,
    LOGIT_BYTES,
    OPTIMIZER_BYTES,
    PRODUCT_SHARE,
    StepTime,
)
from rwkv_train.training.profiling.operator_words import PRODUCTS, WKV
from rwkv_train.training.whole_step import TimedShape, own_sizes

README = Path(__file__).parents[1] / "cuda" / "README.md"
BEGIN = "<!-- step: python -m benchmarks.step_arithmetic -->\n"
END = "<!-- end of step -->\n"
VERSIONS = ("4", "5", "6", "7")
(CARD,) = (card for card in CARDS if card.name == "H100 SXM")

# The H100 SXM, of which large products and copies reach what rwkv-plan assumes of every card.
PRODUCT_FLOPS = PRODUCT_SHARE * CARD.rate
COPY_BYTES = COPY_SHARE * CARD.bandwidth


class Size(NamedTuple):
    """A model, its batch on one card, and how it is trained."""

    name: str
    shape: TimedShape
    cards: int = 1
    grad_cp: bool = False

    def __str__(self) -> str:
        cards = f", {self.cards} cards, ZeRO-2" if self.cards > 1 else ""
        return f"{self.name}, {self.shape.batch} x {self.shape.ctx_len}{cards}" + (
            ", grad_cp" if self.grad_cp else ""
        )


SMALL = Size("L12-D768", TimedShape(12, 768, 65536, 512, 16))
MIDDLE = Size("1.5B (L24-D2048)", TimedShape(24, 2048, 65536, 4096, 8))
_LARGE = "7B (L32-D4096)"
LARGE = Size(_LARGE, TimedShape(32, 4096, 65536, 4096, 1), cards=8)
RECOMPUTED = Size(_LARGE, TimedShape(32, 4096, 65536, 4096, 8), cards=8, grad_cp=True)
SIZES = (SMALL, MIDDLE, LARGE, RECOMPUTED)

# ms of a layer's WKV: forward, and both passes with the states formed again; the rows of the table
# in cuda/README.md. version -> (batch, T, D) -> ms
WKV_MS: dict[str, dict[tuple[int, int, int], tuple[float, float]]] = {
    "4": {(8, 4096, 4096): (0.5, 1.4)},
    "6": {(16, 512, 768): (0.05, 0.2), (8, 4096, 2048): (0.4, 2.0), (8, 4096, 4096): (0.8, 3.9)},
    "7": {(16, 512, 768): (0.05, 0.3), (8, 4096, 2048): (0.5, 2.5), (8, 4096, 4096): (1.0, 4.9)},
}


class Work(NamedTuple):
    """What the passes through layers ask of a card, besides WKV itself."""

    flops: float = 0.0
    product_seconds: float = 0.0
    # of all operators that are neither products nor WKV
    bytes: float = 0.0
    products: float = 0.0

    def minus(self, other: Work) -> Work:
        """Returns the difference, number by number."""
        return Work(*(mine - others for mine, others in zip(self, other)))


class WorkMode(TrafficMode):
    """Adds up the work of the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.product_seconds = 0.0

    def add(self, kind: str, moved: int, given: Sequence[Tensor]) -> None:
        """Counts an operator; a product [.., m, k] x [.., k, n] by its two last arguments."""
        super().add(kind, moved, given)
        if kind == PRODUCTS:
            left, right = given[-2:]
            flops = 2.0 * left.numel() * right.shape[-1]
            self.flops += flops
            self.product_seconds += max(flops / PRODUCT_FLOPS, moved / COPY_BYTES)

    @property
    def work(self) -> Work:
        """What was counted."""
        rest = sum(self.bytes.values()) - self.bytes[PRODUCTS] - self.bytes[WKV]
        return Work(self.flops, self.product_seconds, rest, float(self.launches[PRODUCTS]))


def layer_work(version: str, shape: TimedShape) -> tuple[Work, Work]:
    """Returns what a layer's forward pass, and both its passes, ask for with bf16 weights."""
    three, two = (_blocks_work(version, shape._replace(layers=layers)) for layers in (3, 2))
    return three[0].minus(two[0]), three[1].minus(two[1])


def _blocks_work(version: str, shape: TimedShape) -> tuple[Work, Work]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = build_model(own_sizes(version, shape), wkv_backend="auto", grad_cp=False)
            x = torch.zeros(shape.batch, shape.ctx_len, shape.width, requires_grad=True)
            with WorkMode() as counted:
                out = _through_blocks(model, x)
                forward = counted.work
                torch.autograd.backward(out, [torch.zeros_like(x) for _ in out])
            return forward, counted.work
    finally:
        torch.set_default_dtype(before)


def _through_blocks(model: RWKV, x: Tensor) -> list[Tensor]:
    residual, carry = Residual(x), None
    for block in model.blocks:
        residual, carry, _ = block(residual, carry, None, None, False)
    return [part for part in residual if part is not None]


def wkv_seconds(version: str, shape: TimedShape) -> tuple[float, float]:
    """Returns seconds of a layer's WKV: forward, and both passes.

    A shape without a row takes as long for a token and channel as the slowest row; RWKV-5, whose
    decay is not read for every token, at most as long as RWKV-6.
    """
    rows = WKV_MS["6" if version == "5" else version]
    here = (shape.batch, shape.ctx_len, shape.width)
    if here in rows:
        forward, both = rows[here]
        return forward / 1e3, both / 1e3
    (b, t, d), (forward, both) = max(rows.items(), key=lambda row: row[1][1] / _count(row[0]))
    scale = _count(here) / (b * t * d) / 1e3
    return forward * scale, both * scale


def _count(sizes: tuple[int, int, int]) -> int:
    return sizes[0] * sizes[1] * sizes[2]


def estimate(version: str, size: Size) -> StepTime:
    """Returns what a step takes by the model that this file's constants make."""
    shape = size.shape
    again, both = layer_work(version, shape)
    wkv_again, wkv = wkv_seconds(version, shape)
    # grad_cp runs the forward pass a second time, but for the product that ends a block; its FLOPs
    # are no use and do not count
    times = 1.0 if size.grad_cp else 0.0
    layers, tokens = shape.layers, shape.tokens
    last = 2.0 * tokens * _last_elements(version, shape) / PRODUCT_FLOPS
    head_flops = 6.0 * tokens * shape.width * shape.vocab
    matrices = layers * both.flops / (6.0 * tokens)
    parameters = matrices + 2.0 * shape.width * shape.vocab
    # the forward pass launches less than half of them
    launches = layers * LAYER_TRAFFIC[version].launches * (1.0 + times / 2.0)
    links = 2.0 * parameters * (size.cards - 1) / size.cards / CARD.link
    return StepTime(
        products=layers * (both.product_seconds + times * (again.product_seconds - last)),
        elementwise=layers * (both.bytes + times * again.bytes) / COPY_BYTES,
        wkv=layers * (wkv + times * wkv_again),
        head=head_flops / PRODUCT_FLOPS + LOGIT_BYTES * tokens * shape.vocab / COPY_BYTES,
        optimizer=OPTIMIZER_BYTES * parameters / size.cards / COPY_BYTES,
        # the weights come back behind the optimizer; gradients leave during the backward pass
        links=links,
        context=0.0,
        gaps=launches * GAP_SECONDS,
        host=launches * HOST_SECONDS,
        tokens=size.cards * tokens,
        model_flops=layers * both.flops + head_flops,
        rate=CARD.rate,
    )


def _last_elements(version: str, shape: TimedShape) -> int:
    last = last_product(version)
    return next(t.elements for t in tensor_shapes(own_sizes(version, shape)) if t.name == last)


HEAD = (
    *("step", "RWKV", "products", "elementwise", "WKV", "head", "AdamW", "links", "pauses"),
    *("card", "host", "MFU", "WKV twice as long"),
)


def row(version: str, size: Size) -> str:
    """Returns a row of the table, times in ms."""
    found = estimate(version, size)
    names = (
        "products",
        "elementwise",
        "wkv",
        "head",
        "optimizer",
        "links",
        "gaps",
        "device",
        "host",
    )
    parts = [getattr(found, name) for name in names]
    slower = replace(found, wkv=2 * found.wkv)
    times = [f"{1e3 * part:.1f}" for part in parts]
    shares = [f"{one.mfu:.0%}".replace("%", " %") for one in (found, slower)]
    return f"| {' | '.join([str(size), version, *times, *shares])} |"


def table() -> str:
    """Returns all rows in Markdown."""
    rows = [row(version, size) for size in SIZES for version in VERSIONS]
    return "\n".join([f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *rows]) + "\n"


def with_table(text: str) -> str:
    """Returns the text of cuda/README.md with the table as it is now between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{README} has lost the marks of the table"
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> None:
    """Runs what the module's docstring describes."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(table(), end="")


if __name__ == "__main__":
    main()
