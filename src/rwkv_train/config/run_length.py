"""How long a run is, in rows, windows and steps: pure arithmetic on the resolved configuration.

A row of ctx_len tokens is read in chunks, and for truncated backpropagation in windows. A window is
what one optimizer step reads of a row: `bptt_chunks` chunks of `chunk_len` tokens, or without
`bptt_chunks` the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError


@dataclass(frozen=True)
class RunLength:
    """Length of a run in optimizer steps, counted from its very start.

    total_steps: None for a run without an end.
    completes: reaching total_steps finishes the run (rwkv-final.pth is written); otherwise the
    run only pauses there (--max_steps, --exit_epoch) and is saved like a mini-epoch.
    reason: what ends it, for messages.
    batch_samples: samples that a step reads, whole or one of their `windows`.
    """

    tokens_per_step: int
    epoch_steps: int
    total_steps: int | None
    completes: bool
    reason: str
    batch_samples: int
    windows: int = 1

    def samples(self, step: int) -> tuple[int, int]:
        """Returns the global numbers of the first and the last sample that `step` reads from."""
        first = step // self.windows * self.batch_samples
        return first + 1, first + self.batch_samples


def run_length(config: RunConfig) -> RunLength:
    """Returns the length of a run with this resolved configuration."""
    train = config.train
    ends: list[tuple[int, bool, str]] = []
    steps = total_steps(config)
    if steps is not None:
        budget = f"the budget of {abs(train.exit_tokens):,} tokens"
        reason = budget if train.exit_tokens else f"{train.epoch_count} mini-epochs"
        ends.append((steps, True, reason))
    if train.exit_epoch is not None:
        last = (train.exit_epoch + 1) * train.epoch_steps
        ends.append((last, False, f"--exit_epoch {train.exit_epoch}"))
    if train.max_steps is not None:
        ends.append((train.max_steps, False, f"--max_steps {train.max_steps}"))
    # At equal length finishing wins over pausing: the weights of the end are what was asked for.
    end, completes, reason = min(
        ends, key=lambda end: (end[0], not end[1]), default=(None, False, "nothing but you")
    )
    return RunLength(
        tokens_per_step=tokens_per_step(config),
        epoch_steps=train.epoch_steps,
        total_steps=end,
        completes=completes,
        reason=reason,
        batch_samples=global_batch(config),
        windows=windows_per_row(config),
    )


def global_batch(config: RunConfig) -> int:
    """Returns the samples per optimizer step over all processes and micro steps."""
    hardware, train = config.hardware, config.train
    assert hardware.devices is not None, "the hardware is resolved first"
    processes = hardware.num_nodes * hardware.devices
    return processes * train.micro_bsz * train.accumulate_grad_batches


def tokens_per_step(config: RunConfig) -> int:
    """Returns the tokens that one optimizer step reads."""
    return global_batch(config) * window_len(config)


def total_steps(config: RunConfig) -> int | None:
    """Returns the optimizer steps from the start of the run to the end of its schedule.

    None: the schedule has no end.
    """
    train = config.train
    if train.exit_tokens:
        return -(-abs(train.exit_tokens) // tokens_per_step(config))
    return train.epoch_count * train.epoch_steps if train.epoch_count else None


def window_len(config: RunConfig) -> int:
    """Returns the tokens of a row that one optimizer step reads."""
    train = config.train
    if train.bptt_chunks is None:
        return config.data.ctx_len
    assert train.chunk_len is not None, "checked: bptt_chunks needs chunk_len"
    return train.bptt_chunks * train.chunk_len


def windows_per_row(config: RunConfig) -> int:
    """Returns W, the optimizer steps per row; 1 unless backpropagation is truncated."""
    return config.data.ctx_len // window_len(config)


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
    """What would divide."""
    whole, rest = divmod(ctx_len, chunk_len)
    if rest:
        window = chunks * chunk_len
        lengths = sorted({max(1, ctx_len // window) * window, (ctx_len // window + 1) * window})
        return "use --ctx_len " + " or ".join(map(str, lengths))
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = max((n for n in divisors if n < chunks), default=1)
    above = min((n for n in divisors if n > chunks), default=whole)
    return "use --bptt_chunks " + " or ".join(map(str, sorted({below, above})))
