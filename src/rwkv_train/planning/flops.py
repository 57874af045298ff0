"""FLOPs of training on one token, by part of the model and by pass.

A multiply-add is two.  A product with a matrix of e elements costs 2 e forward, 2 e for the
gradient of its input and 2 e for its own.  Additions, norms and activations count nothing: they
cost bytes, not FLOPs.  MFU takes `model_flops`; what a run does twice to save memory is
`recompute`, and no use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig, ResolvedModel
from rwkv_train.config.run_length import own_window_len
from rwkv_train.config.schema import listed
from rwkv_train.planning.parameter_table import ParameterKind, TensorShape, tensor_shapes


class Passes(NamedTuple):
    """FLOPs per token of a part.

    recompute: what was done before and is done again, for it was not kept.
    """

    forward: int = 0
    backward: int = 0
    recompute: int = 0

    def plus(self, other: Passes) -> Passes:
        """Returns the sum, pass by pass."""
        return Passes(*(mine + others for mine, others in zip(self, other)))


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of training on one token.

    parts: by what tables call them: kinds of matrices, adapters, "WKV".
    """

    parts: Mapping[str, Passes]

    @property
    def forward(self) -> int:
        """The forward pass."""
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> int:
        """The backward pass."""
        return sum(part.backward for part in self.parts.values())

    @property
    def recompute(self) -> int:
        """Work that is done again."""
        return sum(part.recompute for part in self.parts.values())

    @property
    def model_flops(self) -> int:
        """Forward and backward once each: what MFU counts."""
        return self.forward + self.backward

    @property
    def hardware_flops(self) -> int:
        """All that is computed."""
        return self.model_flops + self.recompute


WKV = "WKV"
ADAPTERS = "adapters"


class WkvWork(NamedTuple):
    """FLOPs of a WKV operator per token and entry of its state, as the loop over tokens has them.

    again: the state before every token, which no kernel keeps for the backward pass.
    """

    forward: int
    backward: int
    again: int


# RWKV-5 and 6: decay 1, k v 2, result 2; back 2 for each of the gradients of r, k, v and w, 3 for
# the state's; decay and k v again.  RWKV-7 has S a, its product with b besides: 9; back 2 for each
# of r, w, k, v, a, b and S a, 5 for the state's; all but the result again.  RWKV-4 by channel, an
# exponential counting as one.
WKV_WORK: Mapping[str, WkvWork] = MappingProxyType(
    {
        "4": WkvWork(14, 26, 14),
        "5": WkvWork(5, 11, 3),
        "6": WkvWork(5, 11, 3),
        "7": WkvWork(9, 19, 7),
    }
)

# RWKV-6's five mixes are cheaper formed again than kept.
_FORMED_AGAIN = "att.time_maa_w2"
# They read the block's input or what was made of it alone; so do all low ranks.
_FIRST = frozenset(f"att.{name}" for name in ("receptance", "key", "value", "gate"))
# RWKV-7's first layer has no earlier value to mix in.
_UNUSED_AT_FIRST = frozenset({"att.v1", "att.v2"})


def flops_per_token(config: ResolvedConfig) -> FlopsPerToken:
    """Returns the FLOPs of a run's training on one token.

    Raises ConfigError for a version whose tensors are not listed.
    """
    model = config.model
    chunked = config.train.chunk_len is not None and config.train.chunk_len < own_window_len(config)
    times = (int(chunked) + int(config.train.grad_cp), int(chunked))
    parts: dict[str, Passes] = {}

    def add(part: str, *found: Passes) -> None:
        for passes in found:
            parts[part] = parts.get(part, Passes()).plus(passes)

    for tensor in tensor_shapes(model):
        if not tensor.is_product:
            continue
        add(tensor.kind.value, *_product(config, tensor, *times))
        if _is_adapted(config, tensor):
            add(ADAPTERS, *_adapters(config, tensor, times[0]))
    if model.head_qk:
        add(ParameterKind.HEAD.value, _copy_scores(config))
    add(WKV, _wkv(model, times[0]))
    return FlopsPerToken(MappingProxyType(parts))


def last_product(version: str) -> str:
    """Returns the matrix that ends a block: recomputing stops before it, nothing behind is wanted.

    Unless an adapter's products follow it.
    """
    return "ffn.value" if version == "7" else "ffn.receptance"


def trains_below(config: ResolvedConfig) -> bool:
    """Tells whether something below the first block's products learns, so that gradients go on."""
    return config.train.train_type == "all" or bool(listed(config.adapter.lora_train))


def _product(
    config: ResolvedConfig, tensor: TensorShape, block_times: int, head_times: int
) -> Iterator[Passes]:
    """Yields the work of a matrix: that of all blocks but the first, that of the first."""
    forward = 2 * tensor.elements
    learns = _learns(config, tensor)
    if tensor.kind is ParameterKind.HEAD:
        again = head_times if tensor.key == "head.weight" else 0
        yield Passes(forward, forward * (1 + learns), again * forward)
        return
    # An adapter's products follow its matrix, which is then not the last.
    spared = _ends_block(config, tensor) and not _is_adapted(config, tensor)
    repeated = block_times - int(spared)
    formed = int(tensor.name == _FORMED_AGAIN)
    for count, first in ((tensor.copies - 1, False), (1, True)):
        used = 0 if first and tensor.name in _UNUSED_AT_FIRST else count * forward
        hands_on = not first or trains_below(config) or not _reads_input(tensor)
        back = used * (hands_on + learns)
        yield Passes(used, back, used * (repeated + formed * int(hands_on)))


def _learns(config: ResolvedConfig, tensor: TensorShape) -> bool:
    """Tells whether the gradient of a matrix itself is wanted."""
    if config.train.train_type == "all":
        return True
    words = {ParameterKind.HEAD: "head", ParameterKind.LOW_RANK: "time"}
    return words.get(tensor.kind) in listed(config.adapter.lora_train)


def _reads_input(tensor: TensorShape) -> bool:
    return tensor.kind is ParameterKind.LOW_RANK or tensor.name in _FIRST


def _is_adapted(config: ResolvedConfig, tensor: TensorShape) -> bool:
    if config.train.train_type != "lora" or not tensor.is_adaptable:
        return False
    chosen = listed(config.adapter.lora_targets)
    return not chosen or bool({tensor.name, *tensor.name.split(".")} & set(chosen))


def _ends_block(config: ResolvedConfig, tensor: TensorShape) -> bool:
    """Tells whether grad_cp recomputes nothing of a matrix: what is behind it is not wanted."""
    return config.train.grad_cp and tensor.name == last_product(config.model.rwkv_version)


def _adapters(config: ResolvedConfig, tensor: TensorShape, times: int) -> Iterator[Passes]:
    """Yields the work of a matrix's adapters in all blocks but the first, and in the first."""
    adapter = config.adapter
    out, width = tensor.shape
    # PiSSA's start is subtracted by a second pair next to the first.
    rank = adapter.lora_r * (2 if adapter.lora_init == "pissa" else 1)
    # DoRA multiplies the pair once a pass, for the length of every row.
    tokens = config.train.micro_bsz * own_window_len(config)
    lengths = 2 * rank * out * width // tokens if adapter.lora_dora else 0
    spares = _ends_block(config, tensor) and not adapter.lora_dora
    for count, first in ((tensor.copies - 1, False), (1, True)):
        forward = count * (2 * rank * (out + width) + lengths)
        back = 2 * count * 2 * rank * (out + width)
        if first and not trains_below(config) and _reads_input(tensor):
            back -= 2 * rank * width
        spared = count * 2 * rank * out if spares else 0
        yield Passes(forward, back, times * forward - spared)


def _copy_scores(config: ResolvedConfig) -> Passes:
    """Returns the work of the copy head's scores, of every token with every other of its row."""
    forward = 2 * config.model.head_qk * config.data.ctx_len
    return Passes(forward, 2 * forward, 0)


def _wkv(model: ResolvedModel, times: int) -> Passes:
    work = WKV_WORK[model.rwkv_version]
    entries = model.n_layer * model.dim_att * (model.head_size or 1)
    return Passes(
        entries * work.forward,
        entries * work.backward,
        entries * (work.again + times * work.forward),
    )
