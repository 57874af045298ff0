"""Bytes of head and loss: a slice of logits at a time, with the gradients that wait for the rest.

The arithmetic of `ops.head_loss`: the slices' size, and the dtypes of logits and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.kept_activations import Learning, widths_of

_FP32 = 4
# As ops/head_loss chooses: bytes of a slice, and the most of one where the weight learns.
_LOGITS = 64 * 2**20
_MOST_LOGITS = {"cpu": 512 * 2**20, "gpu": 1024 * 2**20}


@dataclass(frozen=True)
class HeadBytes:
    """forward: at the end of the forward pass; backward: when its gradients are scaled; gradient:
    of the weight, as it comes out, 0 where it does not learn."""

    forward: int
    backward: int
    gradient: int


def head_bytes(config: ResolvedConfig, tokens: int) -> HeadBytes:
    """Returns what the head holds for a pass over so many tokens."""
    model = config.model
    weight, stream, product = widths_of(config)
    accelerator = config.hardware.accelerator
    learns = Learning(config).fully("head")
    matrix, sequence = model.vocab_size * model.n_embd, tokens * model.n_embd
    # A GPU's products write fp32 logits; a CPU's have the dtype of their operands.
    logit = _FP32 if accelerator == "gpu" else product
    rows = min(tokens, slice_rows(config, logit, learns))
    single = accelerator == "cpu" and rows == tokens
    sums = product if single else _FP32
    forward = rows * model.vocab_size * logit + 2 * sequence * product + tokens * _FP32
    if product != weight:
        forward += matrix * product
    if learns:
        forward += matrix * sums
        if accelerator == "cpu" and sums != product:
            # A slice's product, before it is added.
            forward += matrix * product
    scaled = sequence * (product + stream)
    backward = sequence * product + scaled
    if learns:
        backward = max(backward, sequence * stream + matrix * (sums + _scaled(sums, weight)))
    if model.head_qk:
        # Scores, and the logits that they are added to, for all tokens at once.
        pairs = tokens * (config.data.ctx_len * 3 * product + 2 * model.vocab_size * product)
        forward, backward = forward + pairs, backward + pairs
    return HeadBytes(forward, backward, matrix * weight if learns else 0)


def slice_rows(config: ResolvedConfig, logit: int, learns: bool) -> int:
    """Returns the tokens of a slice; logit: bytes of a logit; learns: whether the head does."""
    if config.hardware.head_chunk is not None:
        return config.hardware.head_chunk
    row = logit * config.model.vocab_size
    rows = max(1, _LOGITS // row)
    if learns:
        most = _MOST_LOGITS[config.hardware.accelerator]
        rows = max(rows, min(4 * config.model.n_embd, most // row))
    return rows


def _scaled(kept: int, wanted: int) -> int:
    """Returns the bytes a number takes while it is scaled in fp32 and rounded to `wanted`."""
    return _FP32 + (0 if wanted == _FP32 else wanted)
