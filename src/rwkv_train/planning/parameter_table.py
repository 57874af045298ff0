"""The tensors of a model by shape and kind, counted without torch.

The shapes are those that `models.rwkvN` builds and a checkpoint holds; a test compares the two for
every published size.  D width, A = dim_att, F = dim_ffn, V vocabulary, H heads of N channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.errors import ConfigError


class ParameterKind(str, Enum):
    """A part of a model, as tables call it."""

    EMBEDDING = "embedding"
    HEAD = "head"
    TIME_MIX = "time mix"
    LOW_RANK = "low ranks"
    CHANNEL_MIX = "channel mix"
    VECTORS = "vectors and norms"


class TensorShape(NamedTuple):
    """A tensor of a model, or of each of its blocks.

    key: checkpoint key, `*` standing for the block number.
    copies: how many the model has: 1, or the number of blocks.
    """

    key: str
    shape: tuple[int, ...]
    kind: ParameterKind
    copies: int = 1

    @property
    def elements(self) -> int:
        """Elements of one of them."""
        return math.prod(self.shape)

    @property
    def is_product(self) -> bool:
        """True where activations are multiplied by it; an embedding is read by rows."""
        return self.kind not in (ParameterKind.EMBEDDING, ParameterKind.VECTORS)

    @property
    def is_adaptable(self) -> bool:
        """True for the large matrices of blocks, next to which an adapter can stand."""
        return self.kind in (ParameterKind.TIME_MIX, ParameterKind.CHANNEL_MIX)

    @property
    def name(self) -> str:
        """Name of a block's matrix as --lora_targets has it: att.key."""
        return self.key.removeprefix("blocks.*.").removesuffix(".weight")


@dataclass(frozen=True)
class ParameterTable:
    """Parameters of a model by kind, all that its checkpoint holds.

    state: elements of the recurrent operators' states of one sequence, over all layers.
    """

    kinds: Mapping[ParameterKind, int]
    state: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.kinds.values())

    @property
    def products(self) -> int:
        """Elements of what activations are multiplied by."""
        return self.total - self.kinds[ParameterKind.EMBEDDING] - self.kinds[ParameterKind.VECTORS]


# Key below the block or the model, shape, kind.
_Named = tuple[str, tuple[int, ...], ParameterKind]


def parameter_table(model: ResolvedModel) -> ParameterTable:
    """Returns the parameters by kind; raises ConfigError for a version that is not known here."""
    kinds = dict.fromkeys(ParameterKind, 0)
    for tensor in tensor_shapes(model):
        kinds[tensor.kind] += tensor.copies * tensor.elements
    return ParameterTable(MappingProxyType(kinds), model.n_layer * layer_state(model))


def tensor_shapes(model: ResolvedModel) -> tuple[TensorShape, ...]:
    """Returns every tensor of a checkpoint, those of blocks once with their number.

    Initial states and adapters, which other train types add, are not among them.  Raises
    ConfigError for a version that is not known here.
    """
    if not is_planned(model.rwkv_version):
        raise ConfigError(
            f"RWKV-{model.rwkv_version} cannot be planned, its tensors are not listed; expected "
            f"{', '.join(_TIME_MIX)}"
        )
    V, D = model.vocab_size, model.n_embd
    outer: list[_Named] = [
        ("emb.weight", (V, D), ParameterKind.EMBEDDING),
        *_norm("blocks.0.ln0", D),
        *_norm("ln_out", D),
        ("head.weight", (V, D), ParameterKind.HEAD),
    ]
    if model.head_qk:
        outer += [(f"head_{name}.weight", (model.head_qk, D), ParameterKind.HEAD) for name in "qk"]
    inner = [
        *_norm("ln1", D),
        *_norm("ln2", D),
        *((f"att.{key}", shape, kind) for key, shape, kind in _TIME_MIX[model.rwkv_version](model)),
        *((f"ffn.{key}", shape, kind) for key, shape, kind in _channel_mix(model)),
    ]
    blocks = (
        TensorShape(f"blocks.*.{key}", shape, kind, model.n_layer) for key, shape, kind in inner
    )
    return (*(TensorShape(*named) for named in outer), *blocks)


def is_planned(version: str) -> bool:
    """Tells whether the tensors of an RWKV version are listed here."""
    return version in _TIME_MIX


def layer_state(model: ResolvedModel) -> int:
    """Returns the elements of one layer's operator state, of one sequence."""
    # RWKV-4 keeps a sum, a weight and an exponent per channel.
    return model.dim_att * (model.head_size or 3)


def trained_state(model: ResolvedModel) -> int:
    """Returns the elements of one layer's initial state that --train_type states learns."""
    # RWKV-4 learns the value and the key of one token before the first.
    return model.dim_att * (model.head_size or 2)


def _norm(name: str, width: int) -> list[_Named]:
    return [(f"{name}.{end}", (width,), ParameterKind.VECTORS) for end in ("weight", "bias")]


def _vectors(names: str, prefix: str, width: int) -> list[_Named]:
    return [(f"{prefix}_{name}", (1, 1, width), ParameterKind.VECTORS) for name in names]


def _matrix(
    name: str, out: int, width: int, kind: ParameterKind = ParameterKind.TIME_MIX
) -> _Named:
    return f"{name}.weight", (out, width), kind


def _pair(down: str, up: str, rank: int, width: int, out: int) -> list[_Named]:
    return [
        (down, (width, rank), ParameterKind.LOW_RANK),
        (up, (rank, out), ParameterKind.LOW_RANK),
    ]


def _per_head(names: tuple[str, ...], model: ResolvedModel) -> list[_Named]:
    shape = (model.dim_att // model.head_size, model.head_size)
    return [(name, shape, ParameterKind.VECTORS) for name in names]


def _time_mix_4(model: ResolvedModel) -> list[_Named]:
    D, A = model.n_embd, model.dim_att
    return [
        ("time_decay", (A,), ParameterKind.VECTORS),
        ("time_first", (A,), ParameterKind.VECTORS),
        *_vectors("kvr", "time_mix", D),
        *(_matrix(name, A, D) for name in ("key", "value", "receptance")),
        _matrix("output", D, A),
    ]


def _gated(model: ResolvedModel) -> list[_Named]:
    """Returns what the time mixes of RWKV-5 and 6 share."""
    D, A = model.n_embd, model.dim_att
    return [
        *_per_head(("time_faaaa",), model),
        *(_matrix(name, A, D) for name in ("receptance", "key", "value", "gate")),
        _matrix("output", D, A),
        *_norm("ln_x", A),
    ]


def _time_mix_5(model: ResolvedModel) -> list[_Named]:
    mixes = _vectors("kvrg", "time_mix", model.n_embd)
    return [*mixes, *_per_head(("time_decay",), model), *_gated(model)]


def _time_mix_6(model: ResolvedModel) -> list[_Named]:
    D, A, R = model.n_embd, model.dim_att, model.rank_mix
    return [
        *_vectors("xwkvrg", "time_maa", D),
        ("time_maa_w1", (D, 5 * R), ParameterKind.LOW_RANK),
        ("time_maa_w2", (5, R, D), ParameterKind.LOW_RANK),
        ("time_decay", (1, 1, A), ParameterKind.VECTORS),
        *_pair("time_decay_w1", "time_decay_w2", model.rank_decay, D, A),
        *_gated(model),
    ]


def _time_mix_7(model: ResolvedModel) -> list[_Named]:
    D = model.n_embd
    ranks = {
        "w": model.rank_decay,
        "a": model.rank_iclr,
        "v": model.rank_value,
        "g": model.rank_gate,
    }
    return [
        *_vectors("rwkvag", "x", D),
        *((f"{name}0", (1, 1, D), ParameterKind.VECTORS) for name in "wav"),
        *(row for name, rank in ranks.items() for row in _pair(f"{name}1", f"{name}2", rank, D, D)),
        *_vectors("ka", "k", D),
        *_per_head(("r_k",), model),
        *(_matrix(name, D, D) for name in ("receptance", "key", "value", "output")),
        *_norm("ln_x", D),
    ]


_TIME_MIX: Mapping[str, Callable[[ResolvedModel], list[_Named]]] = MappingProxyType(
    {"4": _time_mix_4, "5": _time_mix_5, "6": _time_mix_6, "7": _time_mix_7}
)


def _channel_mix(model: ResolvedModel) -> list[_Named]:
    D, hidden, kind = model.n_embd, model.dim_ffn, ParameterKind.CHANNEL_MIX
    outer = [_matrix("key", hidden, D, kind), _matrix("value", D, hidden, kind)]
    if model.rwkv_version == "7":
        return [*_vectors("k", "x", D), *outer]
    mixes = _vectors("kr", "time_maa" if model.rwkv_version == "6" else "time_mix", D)
    return [*mixes, *outer, _matrix("receptance", D, D, kind)]
