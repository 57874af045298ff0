"""Faults in how rows are cut into chunks and windows, which show in the configuration alone."""

from __future__ import annotations

from rwkv_train.config.run_length import windows_per_row
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError


def check_windows(config: RunConfig) -> None:
    """Raises ConfigError when rows cannot be read in the chunks and windows asked for."""
    train, ctx_len = config.train, config.data.ctx_len
    chunk_len, chunks = train.chunk_len, train.bptt_chunks
    if chunk_len is None:
        if chunks is not None:
            raise ConfigError(
                f"--bptt_chunks {chunks} counts chunks of --chunk_len tokens, which is not given"
            )
        return
    if config.model.head_qk:
        raise ConfigError(
            f"--chunk_len {chunk_len}: a model with head_qk looks back at every token of its row"
            " and cannot read it in chunks; leave --chunk_len out"
        )
    if chunk_len > ctx_len:
        raise ConfigError(
            f"--chunk_len {chunk_len} is longer than --ctx_len {ctx_len}; use fewer tokens, or"
            " leave it out to read every row at once"
        )
    if chunks is None:
        return
    # chunk_len alone need not divide: all of the row is one step.  Windows are a step each, and
    # the token budget counts on steps of equal length.
    if ctx_len % (chunks * chunk_len):
        raise ConfigError(
            f"--bptt_chunks {chunks} x --chunk_len {chunk_len} does not divide --ctx_len {ctx_len};"
            f" {_nearest(ctx_len, chunk_len, chunks)}"
        )
    if train.train_type == "states" and windows_per_row(config) > 1:
        raise ConfigError(
            f"--bptt_chunks {chunks} with --train_type states: only the first window of a row"
            " starts from the trained state; leave --bptt_chunks out, --chunk_len alone is exact"
        )


def _nearest(ctx_len: int, chunk_len: int, chunks: int) -> str:
    """Returns what would divide, as advice."""
    whole, rest = divmod(ctx_len, chunk_len)
    # When chunk_len does not divide ctx_len, no number of chunks does.
    if rest:
        window = chunks * chunk_len
        lengths = sorted({max(1, ctx_len // window) * window, (ctx_len // window + 1) * window})
        return "use --ctx_len " + " or ".join(map(str, lengths))
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = max((n for n in divisors if n < chunks), default=1)
    above = min((n for n in divisors if n > chunks), default=whole)
    return "use --bptt_chunks " + " or ".join(map(str, sorted({below, above})))
