"""The names of what can be verified, known without importing torch."""

from __future__ import annotations

from rwkv_train.config.versions import VERSIONS

# The folders of rwkv_train.ops that have backends.
OPERATORS = (
    *("wkv4", "wkv5", "wkv6", "wkv7"),
    *("keys", "value_residual", "squared_relu", "sigmoid_gate", "split_tanh", "head_norm_gate"),
    *("norm_shift", "embedding_norm", "head_loss", "adamw", "matvec", "pieces"),
)
MODEL, RUN, BITS = "model-", "run-", "bits-"
CPU_KINDS = (MODEL, BITS)
ITEMS = (*OPERATORS, *(f"{kind}{version}" for version in VERSIONS for kind in (MODEL, RUN, BITS)))
