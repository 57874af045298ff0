"""Seconds of an optimizer step on a card, by arithmetic: nothing here was measured on one.

Products reach a share of the card's published rate, or of its bandwidth where their bytes take
longer; everything else moves its bytes at a share of the bandwidth.  Gradients travel behind the
backward pass, weights gathered by ZeRO after the step or, at stage 3, behind the passes.  The host
launches kernels beside the card: a step takes the longer of the two.  `benchmarks.step_arithmetic`
counts the same from the model's own operators, for an H100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import own_window_len, tokens_per_step
from rwkv_train.planning.cards import Card
from rwkv_train.planning.context_traffic import EXTRA_CALLS
from rwkv_train.planning.flops import WKV, flops_per_token
from rwkv_train.planning.parameter_table import ParameterKind, tensor_shapes
from rwkv_train.planning.step_links import (
    context_wait,
    learnt_parameters,
    network_of,
    strategy_wait,
)

# Assumed: shares of the published rate and bandwidth that large products and copies reach.
PRODUCT_SHARE = 650 / 989
COPY_SHARE = 2.8 / 3.35
# Assumed: seconds of a pause between two kernels, and of the host for one of torch's operators.
GAP_SECONDS = 1e-6
HOST_SECONDS = 5e-6
# Bytes: of a parameter in AdamW with masters; of a logit beside the head's products.
OPTIMIZER_BYTES = 30
LOGIT_BYTES = 10
# Assumed: bytes/s of a machine's memory, where an offloaded optimizer works, and of the link that
# joins it to a card.
_HOST_BANDWIDTH, HOST_LINK = 100e9, 25e9


class LayerTraffic(NamedTuple):
    """A layer in 16 bits, both its passes.

    launches: kernels of both passes, matrix products included.
    forward, both: bytes per token and channel of all but products and WKV; of the forward pass
        alone, and of both.  wkv_forward, wkv_both: those that WKV's time is worth.
    """

    launches: int
    forward: float
    both: float
    wkv_forward: float
    wkv_both: float


# As `benchmarks.step_arithmetic` adds them up at width 2048, and its table of WKV's times.
LAYER_TRAFFIC: Mapping[str, LayerTraffic] = MappingProxyType(
    {
        "4": LayerTraffic(67, 46.0, 110.0, 10.4, 29.2),
        "5": LayerTraffic(83, 46.0, 109.0, 16.7, 83.4),
        "6": LayerTraffic(83, 62.7, 156.7, 16.7, 83.4),
        "7": LayerTraffic(89, 69.2, 166.3, 20.9, 104.3),
    }
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step on every card, by what takes them.

    links: gradients and weights that are waited for; context: states and border rows of samples
    that several cards share.  host: launching, beside the others.
    tokens: read by the step on all cards.  model_flops: of one card's share of them.
    """

    products: float
    elementwise: float
    wkv: float
    head: float
    optimizer: float
    links: float
    context: float
    gaps: float
    host: float
    tokens: int
    model_flops: float
    rate: float

    @property
    def seconds(self) -> float:
        """Seconds of the step; its passes take those of the card or of the host, if more."""
        return max(self._passes, self.host) + self._behind

    @property
    def device(self) -> float:
        """Seconds on the card, kernels one after the other."""
        return self._passes + self._behind

    @property
    def waits_for_host(self) -> bool:
        """Tells whether the host needs longer to launch the passes than the card to run them."""
        return self.host > self._passes

    @property
    def _behind(self) -> float:
        return self.optimizer + self.links + self.context

    @property
    def _passes(self) -> float:
        return self.products + self.elementwise + self.wkv + self.head + self.gaps

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all cards."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """The share of the published rate that the model's FLOPs are computed at."""
        return self.model_flops / self.seconds / self.rate


def rate_of(card: Card, precision: str) -> float | None:
    """Returns the card's FLOP/s in a precision; None where the table has none: fp32."""
    # Every tensor core of the table multiplies TF32 at half the rate of 16 bits.
    return {"bf16": card.rate, "fp16": card.rate, "tf32": card.rate / 2}.get(precision)


def step_time(config: ResolvedConfig, card: Card) -> StepTime | None:
    """Returns how long a step takes on cards of this kind; None in fp32, whose rate is not listed.

    Raises ConfigError for a version whose tensors are not listed.
    """
    rate = rate_of(card, config.hardware.precision)
    if rate is None:
        return None
    return _Step(config, card, rate).time()


class _Step:
    """One step's work on one card."""

    def __init__(self, config: ResolvedConfig, card: Card, rate: float) -> None:
        hardware, train = config.hardware, config.train
        self._config, self._rate = config, rate
        self._network = network_of(config, card)
        self._copy = card.bandwidth * COPY_SHARE
        # Those of the card that has the most of every sample.
        row = own_window_len(config)
        self._tokens = train.micro_bsz * train.accumulate_grad_batches * row
        self._flops = flops_per_token(config)
        self._bytes = 2 if hardware.precision in ("bf16", "fp16") else 4
        self._traffic = LAYER_TRAFFIC[config.model.rwkv_version]
        # How often the forward pass of the blocks runs again.
        self._again = int(train.grad_cp) + int(
            train.chunk_len is not None and train.chunk_len < row
        )

    def time(self) -> StepTime:
        products = self._tokens * self._products()
        layers, width = self._config.model.n_layer, self._config.model.n_embd
        traffic, again = self._traffic, self._again
        elements = self._tokens * layers * width * self._bytes / 2
        elementwise = elements * (traffic.both + again * traffic.forward) / self._copy
        wkv = elements * (traffic.wkv_both + self._wkv_again() * traffic.wkv_forward) / self._copy
        launches = (
            self._config.train.accumulate_grad_batches * layers * traffic.launches * (1 + again / 2)
        )
        head = self._head()
        return StepTime(
            products=products,
            elementwise=elementwise,
            wkv=wkv,
            head=head,
            optimizer=self._optimizer(),
            links=strategy_wait(
                self._config, self._network, products + elementwise + wkv + head, again
            ),
            context=context_wait(self._config, self._network),
            gaps=launches * GAP_SECONDS,
            host=launches * HOST_SECONDS,
            tokens=tokens_per_step(self._config),
            model_flops=float(self._tokens * self._flops.model_flops),
            rate=self._rate,
        )

    def _wkv_again(self) -> int:
        """Returns the forward calls of WKV beside the one of the forward pass."""
        extra = EXTRA_CALLS[self._config.model.rwkv_version]
        return self._again + (extra if self._config.hardware.context_parallel > 1 else 0)

    def _products(self) -> float:
        """Returns seconds per token of the products of blocks."""
        reached, low = self._rate * PRODUCT_SHARE, ParameterKind.LOW_RANK.value
        skipped = (WKV, ParameterKind.HEAD.value, low)
        flops = sum(sum(part) for name, part in self._flops.parts.items() if name not in skipped)
        passes = self._flops.parts.get(low)
        if passes is None:
            return flops / reached
        # A thin matrix is multiplied as fast as its inputs and results come and go.
        return flops / reached + max(
            sum(passes) / reached, sum(passes) * self._bytes_a_flop() / self._copy
        )

    def _bytes_a_flop(self) -> float:
        """Returns the bytes that a FLOP of the low ranks moves: inputs and results."""
        thin = [t for t in tensor_shapes(self._config.model) if t.kind is ParameterKind.LOW_RANK]
        moved = sum(t.elements / t.shape[-1] + t.elements / t.shape[-2] for t in thin)
        return self._bytes * moved / (2 * sum(t.elements for t in thin))

    def _head(self) -> float:
        flops = sum(self._flops.parts[ParameterKind.HEAD.value]) * self._tokens
        logits = self._tokens * self._config.model.vocab_size * LOGIT_BYTES
        return flops / (self._rate * PRODUCT_SHARE) + logits / self._copy

    def _optimizer(self) -> float:
        strategy = self._config.hardware.strategy
        own = learnt_parameters(self._config) / (
            self._network.ranks if strategy.startswith("deepspeed") else 1
        )
        if not strategy.endswith("_offload"):
            return own * OPTIMIZER_BYTES / self._copy
        # Gradients go to the machine's memory, weights come back.
        return own * (OPTIMIZER_BYTES / _HOST_BANDWIDTH + 4 / HOST_LINK)
