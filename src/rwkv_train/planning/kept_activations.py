"""Bytes a token costs in a block: what the backward pass needs, and what it works with.

Counts of the tensors that the operators of `models.rwkvN` keep, each once (fused.md's arithmetic,
which tests/models/test_layer_traffic.py holds for bf16): D width, A = dim_att, F = dim_ffn, N head
size.  A product keeps its input only if its weight learns or has an adapter; the project's own
operators keep what they read in any case.  Where no kernels can be built more is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig, ResolvedModel
from rwkv_train.config.schema import listed
from rwkv_train.planning.parameter_table import TensorShape, tensor_shapes

_FP32 = 4
# Tokens between the states that the operators keep: ops/native and ops/wkv4.
_STATE_EVERY = 64
_STATE_EVERY_OF_RWKV4 = 16
# Mean and inverse deviation of a token, for each of the two norms of a block.
_STATISTICS = 2 * 2 * _FP32
# Per version the products that read each mix of a token with the one before it.
_MIXES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "4": (("att.key",), ("att.value",), ("att.receptance",), ("ffn.key",), ("ffn.receptance",)),
    "5": (
        *(("att.receptance",), ("att.key",), ("att.value",), ("att.gate",)),
        *(("ffn.key",), ("ffn.receptance",)),
    ),
    "6": (
        *(("att.time_maa_w1",), ("att.time_decay_w1",), ("att.key",), ("att.value",)),
        *(("att.receptance",), ("att.gate",), ("ffn.key",), ("ffn.receptance",)),
    ),
    "7": (
        *(("att.receptance",), ("att.w1",), ("att.key",), ("att.value", "att.v1"), ("att.a1",)),
        *(("att.g1",), ("ffn.key",)),
    ),
}
# The sequences that the time mix's operators keep besides, in widths A of the products' dtype, and
# their gradients' dtype: r, k, v, y and so on.
_SEQUENCES: Mapping[str, int] = {
    # k, v, r, y
    "4": 4,
    # r, k, v, y, gate
    "5": 5,
    "6": 5,
    # r, k, v, a, b, y, gate; raw key, rate; raw value, its share's logits
    "7": 11,
}


class Widths(NamedTuple):
    """Bytes of a number.

    weight: of the model; stream: of the residual stream; product: of what matrix products read.
    """

    weight: int
    stream: int
    product: int

    @property
    def copies(self) -> bool:
        """True where every product rounds its weight, of which a copy stays: autocast."""
        return self.product != self.weight


@dataclass(frozen=True)
class BlockBytes:
    """Bytes per token of one block.

    kept: from the forward pass to the backward pass.
    inputs: what the block itself reads, which is all that activation checkpointing keeps.
    working: of the backward pass at its worst moment, besides `kept`.
    """

    kept: float
    inputs: float
    working: float


class Learning:
    """The products of a block that learn, by themselves or through an adapter."""

    def __init__(self, config: ResolvedConfig) -> None:
        train, adapter = config.train, config.adapter
        self.everything = train.train_type == "all"
        self._fully = listed(adapter.lora_train) if train.train_type == "lora" else ()
        targets = listed(adapter.lora_targets)
        shapes = [t for t in tensor_shapes(config.model) if t.is_adaptable]
        self.adapted: dict[str, TensorShape] = {
            tensor.name: tensor
            for tensor in shapes
            if train.train_type == "lora"
            and (not targets or any(_means(target, tensor.name) for target in targets))
        }

    def fully(self, word: str) -> bool:
        """Tells whether a part learns as a whole: emb, head, ln or time, as --lora_train has it."""
        return self.everything or word in self._fully

    def keeps_input(self, name: str) -> bool:
        """Tells whether the product `name` (att.key, att.w1) keeps what it reads."""
        if name in self.adapted:
            return True
        # Pairs of low rank are among the small tensors that --lora_train time stands for.
        small = "att." in name and name.removeprefix("att.") not in _LARGE
        return self.fully("time") if small else self.everything

    @property
    def before_blocks(self) -> bool:
        """True where something learns before the first product of the first block."""
        return any(self.fully(word) for word in ("emb", "ln", "time"))


_LARGE = ("receptance", "key", "value", "gate", "output")


def widths_of(config: ResolvedConfig) -> Widths:
    """Returns how many bytes a number takes in a run of this configuration."""
    hardware = config.hardware
    if hardware.precision in ("fp32", "tf32"):
        return Widths(_FP32, _FP32, _FP32)
    weight = 2 if hardware.autocast is False else _FP32
    return Widths(weight, weight, 2)


def block_bytes(config: ResolvedConfig, *, is_first: bool) -> BlockBytes:
    """Returns what a token costs in a block; is_first: in the first one, which reads no branch."""
    model, learning = config.model, Learning(config)
    _, x, e = widths = widths_of(config)
    D, hidden = model.n_embd, model.dim_ffn
    gated = model.rwkv_version != "7"
    # The branch of the block before and its gate, which the norm keeps where there is a gate.
    branch = 0 if is_first else (2 if gated else 1) * e * D
    inert = is_first and not learning.before_blocks
    kept: float = 2 * D * x + _STATISTICS + (branch if gated else 0)
    if inert:
        kept -= D * x + _STATISTICS / 2
    reads = [any(map(learning.keeps_input, names)) for names in _MIXES[model.rwkv_version]]
    kept += sum(reads) * D * e
    kept += _time_mix(model, widths, learning, is_first, inert)
    kept += hidden * e
    if learning.keeps_input("ffn.value"):
        kept += hidden * e
    kept += _adapters(config, learning, e) + _dropout(model)
    return BlockBytes(kept, D * x + branch, _working(model, widths, learning))


def _time_mix(
    model: ResolvedModel, widths: Widths, learning: Learning, is_first: bool, inert: bool
) -> float:
    """Returns what the operators between the mixes and the output's product keep."""
    e, A, version = widths.product, model.dim_att, model.rwkv_version
    sequences = _SEQUENCES[version]
    if version == "7" and is_first:
        # The first layer's value is not mixed with an earlier one, and its raw key does not count
        # where nothing before it learns.
        sequences -= 2
        sequences -= 2 if inert and not learning.adapted else 0
    kept: float = sequences * A * e
    if learning.keeps_input("att.output"):
        kept += A * e
    if version == "4":
        return kept + 3 * A * _FP32 / _STATE_EVERY_OF_RWKV4
    # A state [N, N] a head.
    kept += A * model.head_size * _FP32 / _STATE_EVERY
    if version == "5":
        return kept
    # The decay is fp32 whatever the products are.
    kept += A * _FP32
    hidden = 0 if inert and version == "7" else model.rank_decay
    if version == "6":
        return kept + (hidden + 5 * model.rank_mix) * e
    hidden += model.rank_gate
    hidden += model.rank_iclr if learning.keeps_input("att.a2") else 0
    hidden += model.rank_value if learning.keeps_input("att.v2") and not is_first else 0
    # The bonus is one number a head.
    return kept + hidden * e + A / model.head_size * _FP32


def _working(model: ResolvedModel, widths: Widths, learning: Learning) -> float:
    """Returns what the backward pass of the channel mix has at once, the widest place of a block.

    The gradient of what its second product reads, besides those of stream, branch and gate; then
    that of what the first one gave, when the first is still there and what it was made of is not.
    """
    _, x, e = widths
    D, hidden = model.n_embd, model.dim_ffn
    gradients = D * x
    gate = 0 if model.rwkv_version == "7" else D * e
    # One tensor is the gradient of stream and branch where they have one dtype and no gate.
    branch = D * e if gate or x != e else 0
    first = gradients + gate + branch + hidden * e
    freed = hidden * e if learning.keeps_input("ffn.value") else 0
    return max(first, gradients + gate + 2 * hidden * e - freed)


def _adapters(config: ResolvedConfig, learning: Learning, e: int) -> float:
    """Returns what the adapters keep besides the inputs of the matrices next to them."""
    adapter = config.adapter
    rank = adapter.lora_r * (2 if adapter.lora_init == "pissa" else 1)
    kept = 0
    for tensor in learning.adapted.values():
        out, width = tensor.shape
        kept += rank * e
        if adapter.lora_dropout:
            # The input after dropout, and which of it was dropped.
            kept += width * (e + 1)
        if adapter.lora_dora:
            kept += out * e
    return kept


def _dropout(model: ResolvedModel) -> float:
    """Returns the bytes of the masks of what was dropped of the residual stream."""
    return 2 * model.n_embd if model.dropout and model.rwkv_version != "7" else 0


def _means(target: str, name: str) -> bool:
    return target == name or target in name.split(".")
