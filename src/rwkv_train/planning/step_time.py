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
from rwkv_train.config.run_length import tokens_per_step, window_len
from rwkv_train.planning.cards import Card
from rwkv_train.planning.flops import WKV, flops_per_token
from rwkv_train.planning.link_traffic import ADAPTER_BANDWIDTH, Network
from rwkv_train.planning.parameter_table import ParameterKind, parameter_table, tensor_shapes

# Assumed: shares of the published rate and bandwidth that large products and copies reach.
PRODUCT_SHARE = 650 / 989
COPY_SHARE = 2.8 / 3.35
# Assumed: seconds of a pause between two kernels, and of the host for one of torch's operators.
GAP_SECONDS = 1e-6
HOST_SECONDS = 5e-6
# Bytes: of a parameter in AdamW with masters; of a logit beside the head's products.
OPTIMIZER_BYTES = 30
LOGIT_BYTES = 10
# Assumed: bytes/s of a machine's memory, where an offloaded optimizer works, and of the link between
# it and a card.
_HOST_BANDWIDTH, HOST_LINK = 100e9, 25e9
# Bytes of DDP's buckets of gradients; elements of those in which ZeRO 3 gathers weights.
_DDP_BUCKET, _GATHERED = 25 * 2**20, 500_000_000


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

    links: what travels between cards and is waited for.  host: launching, beside the others.
    tokens: read by the step on all cards.  model_flops: of one card's share of them.
    """

    products: float
    elementwise: float
    wkv: float
    head: float
    optimizer: float
    links: float
    gaps: float
    host: float
    tokens: int
    model_flops: float
    rate: float

    @property
    def seconds(self) -> float:
        """Seconds of the step: those of the card or of the host, whichever are more."""
        return max(self._passes, self.host) + self.optimizer + self.links

    @property
    def waits_for_host(self) -> bool:
        """Tells whether the host needs longer to launch the passes than the card to run them."""
        return self.host > self._passes

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
    return _Step(config, card, rate, network_of(config, card)).time()


def network_of(config: ResolvedConfig, card: Card) -> Network:
    """Returns the links between the cards of a run."""
    hardware = config.hardware
    node = card.adapters or ADAPTER_BANDWIDTH * hardware.devices
    return Network(card.link, node, hardware.devices, hardware.num_nodes)


class _Step:
    """One step's work on one card."""

    def __init__(self, config: ResolvedConfig, card: Card, rate: float, network: Network) -> None:
        hardware, train = config.hardware, config.train
        self._config, self._rate, self._network = config, rate, network
        self._copy = card.bandwidth * COPY_SHARE
        self._pass_tokens = train.micro_bsz * window_len(config)
        self._passes = train.accumulate_grad_batches
        self._tokens = self._pass_tokens * self._passes
        self._flops = flops_per_token(config)
        self._table = parameter_table(config.model)
        self._bytes = 2 if hardware.precision in ("bf16", "fp16") else 4
        self._traffic = LAYER_TRAFFIC[config.model.rwkv_version]
        # How often the forward pass of the blocks runs again.
        self._again = int(train.grad_cp) + int(
            train.chunk_len is not None and train.chunk_len < window_len(config)
        )

    def time(self) -> StepTime:
        products = self._tokens * self._products()
        layers, width = self._config.model.n_layer, self._config.model.n_embd
        traffic, again = self._traffic, self._again
        elements = self._tokens * layers * width * self._bytes / 2
        elementwise = elements * (traffic.both + again * traffic.forward) / self._copy
        wkv = elements * (traffic.wkv_both + again * traffic.wkv_forward) / self._copy
        launches = self._passes * layers * traffic.launches * (1 + again / 2)
        head = self._head()
        return StepTime(
            products=products,
            elementwise=elementwise,
            wkv=wkv,
            head=head,
            optimizer=self._optimizer(),
            links=self._links(products + elementwise + wkv + head),
            gaps=launches * GAP_SECONDS,
            host=launches * HOST_SECONDS,
            tokens=tokens_per_step(self._config),
            model_flops=float(self._tokens * self._flops.model_flops),
            rate=self._rate,
        )

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

    def _learnt(self) -> int:
        """Returns the parameters that learn; the few of adapters and states count as none."""
        return self._table.total if self._config.train.train_type == "all" else 0

    def _optimizer(self) -> float:
        strategy = self._config.hardware.strategy
        own = self._learnt() / (self._network.ranks if strategy.startswith("deepspeed") else 1)
        if not strategy.endswith("_offload"):
            return own * OPTIMIZER_BYTES / self._copy
        # Gradients go to the machine's memory, weights come back.
        return own * (OPTIMIZER_BYTES / _HOST_BANDWIDTH + 4 / HOST_LINK)

    def _links(self, passes_seconds: float) -> float:
        """Returns the seconds that are waited for what travels between cards."""
        if self._network.ranks == 1:
            return 0.0
        strategy, network = self._config.hardware.strategy, self._network
        learnt, width, passes = self._learnt(), self._bytes, self._passes
        bucket = self._config.hardware.ds_bucket_mb * 1e6
        if strategy == "ddp":
            # Under autocast gradients are fp32; they are added up over the micro batches first.
            sent = network.all_reduce(4 * learnt, 4 * learnt / _DDP_BUCKET)
            return max(0.0, sent - passes_seconds * 2 / 3 / passes)
        if not strategy.startswith("deepspeed_stage_3"):
            # Stage 1 adds micro batches up before it sends, stage 2 sends each.
            times = 1 if strategy == "deepspeed_stage_1" else passes
            sent = times * network.gather(width * learnt, learnt / bucket)
            hidden = passes_seconds * 2 / 3 * times / passes
            return max(0.0, sent - hidden) + network.gather(width * learnt, learnt / bucket)
        total = self._table.total
        times = 2 + self._again
        gathered = times * network.gather(width * total, total / _GATHERED)
        sent = network.gather(width * learnt, learnt / bucket)
        return max(0.0, passes * (gathered + sent) - passes_seconds)
