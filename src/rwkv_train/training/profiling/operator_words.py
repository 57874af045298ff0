"""Says in words what an operator of a step does, from its name and the shapes it was given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.parameter_table import TensorShape, is_planned, tensor_shapes

PRODUCTS, WKV, FUSED = "products", "WKV", "fused operators"
OPTIMIZER, ELEMENTWISE = "optimizer", "elementwise and copies"
KINDS = (PRODUCTS, WKV, FUSED, OPTIMIZER, ELEMENTWISE)
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "dot", "mkldnn_linear"}

COMMUNICATION = "communication"
_COLLECTIVES = ("nccl:", "c10d::", "gloo:", "record_param_comms")
OTHER_PRODUCTS = "other matrix products"
_COPIES = {
    *("copy_", "_to_copy", "clone", "contiguous", "cat", "stack", "fill_", "zero_", "zeros"),
    *("index_select", "pin_memory", "Memcpy", "Memset"),
}
_VIEWS = re.compile(
    r"empty.*|as_strided.*|view.*|_?reshape.*|permute|transpose|t|select|slice|narrow|split.*"
    r"|unsqueeze|squeeze|expand|detach|alias|chunk|unbind|resize_|set_|item|_local_scalar_dense"
)
# Operators of the project whose names are not words: stem -> words.
_FUSED_WORDS = {
    "norm_shift": "norm and token shift",
    "moved_shift": "norm and token shift",
    "head_norm_gate": "norm of the heads and gate",
    "embedding_norm": "embedding and its norm",
    "head_loss_rows": "loss",
    "split_tanh": "tanh of the low ranks",
    "squared_relu": "squared ReLU",
}
_GENERATED = re.compile(r"GeneratedBackwardFor_rwkv_(\w+?)_(forward|backward)_default(Backward)?")
_CHUNKED = re.compile(r"_ChunkedWkv(\d)(Backward)?")


def operator_kind(name: str) -> str:
    """Returns the kind of an operator by its full name, as `aten::mm` or `rwkv::wkv7_forward`."""
    space, _, op = name.partition("::")
    if "adam" in op or op.startswith("_foreach"):
        return OPTIMIZER
    if space == "rwkv":
        return WKV if op.startswith("wkv") else FUSED
    return PRODUCTS if op.removesuffix("_") in _PRODUCTS else ELEMENTWISE


class OperatorWords:
    """The words for operators of one run, whose model's shapes tell its products apart."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._tokens = config.train.micro_bsz * config.data.ctx_len
        self._weights: dict[tuple[int, int], list[str]] = {}
        for pair, words in _weights(config):
            found = self._weights.setdefault(_sorted(pair), [])
            if words not in found:
                found.append(words)

    def of(self, name: str, shapes: Sequence[Sequence[int]]) -> str:
        """Returns the words for an operator, or "" where its caller's say more.

        shapes: of its inputs, empty where one is no tensor.
        """
        if name.startswith(_COLLECTIVES):
            return COMMUNICATION
        chunked, generated = _CHUNKED.fullmatch(name), _GENERATED.fullmatch(name)
        if chunked is not None:
            return f"wkv{chunked[1]} by chunks, {'backward' if chunked[2] else 'forward'}"
        if generated is not None:
            return _fused_words(f"{generated[1]}_{'backward' if generated[3] else generated[2]}")
        if name.startswith("Optimizer.zero_grad"):
            return "release of the gradients"
        if name.endswith("::AccumulateGrad"):
            return "gradients kept or added up"
        if name.startswith("autograd::") or "::" not in name:
            return ""
        kind, op = operator_kind(name), name.partition("::")[2]
        if kind == PRODUCTS:
            return self._product(shapes)
        if kind == OPTIMIZER:
            return "norm of the gradients" if "norm" in op else "optimizer update"
        if kind in (WKV, FUSED):
            return _fused_words(op)
        if _VIEWS.fullmatch(op):
            return ""
        return "copies" if op in _COPIES else f"element by element: {op.strip('_')}"

    def _product(self, shapes: Sequence[Sequence[int]]) -> str:
        """Returns whose product it is: two of its three sizes are those of a weight."""
        given = [shape for shape in shapes if len(shape) > 1][:2]
        if len(given) < 2:
            return OTHER_PRODUCTS
        rows, sums, columns = given[0][-2], given[0][-1], given[1][-1]
        # With the size that is left out, which is a number of tokens.
        pairs = (((sums, columns), rows), ((rows, columns), sums), ((rows, sums), columns))
        known = [pair for pair in pairs if _sorted(pair[0]) in self._weights]
        if not known:
            return OTHER_PRODUCTS
        pair, _ = min(known, key=lambda found: found[1] != self._tokens)
        return "matrix products of the " + " and the ".join(self._weights[_sorted(pair)])


def _weights(config: ResolvedConfig) -> Iterator[tuple[tuple[int, int], str]]:
    """Yields the last two sizes of every matrix that is multiplied by, and whose it is."""
    if not is_planned(config.model.rwkv_version):
        return
    for tensor in tensor_shapes(config.model):
        if not tensor.is_product:
            continue
        yield (tensor.shape[-2], tensor.shape[-1]), _owner(tensor)
        if config.train.train_type == "lora" and tensor.is_adaptable:
            for size in tensor.shape:
                yield (size, config.adapter.lora_r), "adapters"


def _owner(tensor: TensorShape) -> str:
    if tensor.name == "ffn.receptance":
        # As large as the time mix's own.
        return "channel mix's receptance"
    return str(tensor.kind.value)


def _sorted(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


def _fused_words(op: str) -> str:
    """Returns "wkv7 backward" for wkv7_backward, "loss" for head_loss_rows_."""
    op = op.rstrip("_")
    for direction in ("forward", "backward"):
        if op.endswith(f"_{direction}"):
            stem = op.removesuffix(f"_{direction}")
            comma = "" if stem.startswith("wkv") else ","
            return f"{_FUSED_WORDS.get(stem, stem.replace('_', ' '))}{comma} {direction}"
    return _FUSED_WORDS.get(op, op.replace("_", " "))
