"""Sizes of a forward and backward pass, of which a step has several, and of what they hand on."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import own_window_len
from rwkv_train.planning.parameter_table import layer_state

_INT64 = 8
_FP32 = 4


@dataclass(frozen=True)
class PassSizes:
    """A micro batch, or the chunk of it that is read at a time.

    tokens: of a pass, over its samples.  chunks: passes of a micro batch, all of which one backward
    pass goes through.  micro_batches: of a step and process.
    states: bytes of the states between chunks and windows.  batch: of tokens and targets.
    """

    tokens: int
    chunks: int
    micro_batches: int
    states: int
    batch: int


def pass_sizes(config: ResolvedConfig) -> PassSizes:
    """Returns the sizes of a pass."""
    train = config.train
    window = own_window_len(config)
    piece = min(window, train.chunk_len or window)
    chunks = -(-window // piece)
    state = train.micro_bsz * state_bytes(config)
    kept = chunks * state if chunks > 1 else 0
    sharing = config.hardware.context_parallel
    if sharing > 1:
        # The state before the own piece, and the pieces behind: contribution and transition.
        kept += chunks * state * (2 * sharing - 1)
    if train.bptt_chunks is not None:
        # After the window and, until the step is known to be good, before it.
        kept += 2 * train.accumulate_grad_batches * state
    # Tokens with one more at the end, and the shifted copy that the targets are.
    batch = train.micro_bsz * 2 * _INT64 * config.data.ctx_len
    micro_batches = train.accumulate_grad_batches
    return PassSizes(train.micro_bsz * piece, chunks, micro_batches, kept, batch)


def state_bytes(config: ResolvedConfig) -> int:
    """Returns the bytes of one sample's state: two shifts and the operator's, of every layer."""
    model = config.model
    return model.n_layer * _FP32 * (2 * model.n_embd + layer_state(model))
