"""Every operator and the calls it is verified by, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from rwkv_train.verification.operators import layer_parts, model_ends, norms
from rwkv_train.verification.operators.problem import Problem
from rwkv_train.verification.operators.recurrences import wkv_problems
from rwkv_train.verification.operators.state_pieces import piece_problems

# By the names of `item_names`.
PROBLEMS: Mapping[str, Callable[[], Iterator[Problem]]] = {
    **{op: partial(wkv_problems, op) for op in ("wkv4", "wkv5", "wkv6", "wkv7")},
    "keys": layer_parts.key_problems,
    "value_residual": layer_parts.value_problems,
    "squared_relu": layer_parts.relu_problems,
    "sigmoid_gate": layer_parts.gate_problems,
    "split_tanh": layer_parts.tanh_problems,
    "head_norm_gate": layer_parts.head_norm_problems,
    "norm_shift": norms.norm_shift_problems,
    "embedding_norm": norms.embedding_problems,
    "head_loss": model_ends.loss_problems,
    "adamw": model_ends.adamw_problems,
    "matvec": model_ends.matvec_problems,
    "pieces": piece_problems,
}
