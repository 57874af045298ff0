"""Faults in how processes share the tokens of a sample, which show in the configuration alone."""

from __future__ import annotations

from rwkv_train.config.run_length import window_len
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.token_columns import shortest_superchunk
from rwkv_train.errors import ConfigError


def check_shared_samples(config: RunConfig) -> None:
    """Raises ConfigError when samples cannot be spread over --context_parallel processes.

    config: whose windows are in order.
    """
    ranks = config.hardware.context_parallel
    if ranks == 1:
        return
    hardware = config.hardware
    # None is open yet: a launcher or the machine says it, and `resolve` asks again.
    # Stage 1 writes weights, by one process.
    if hardware.devices is not None and config.train.train_stage != 1:
        check_groups(hardware.devices * (hardware.num_nodes or 1), ranks)
    if config.model.head_qk:
        raise ConfigError(
            f"--context_parallel {ranks}: a model with head_qk compares every token with all before"
            " it, which lie on other processes; leave --context_parallel out"
        )
    if config.hardware.compile:
        raise ConfigError(
            f"--context_parallel {ranks} with --compile 1: processes exchange states within the"
            " blocks that would be compiled; leave one out"
        )
    _check_pieces(config, ranks)


def check_groups(processes: int, ranks: int) -> None:
    """Raises ConfigError unless `processes` are whole groups of `ranks` that share a sample."""
    if processes % ranks == 0:
        return
    fewer = [n for n in range(2, ranks) if processes % n == 0]
    advice = f"use --context_parallel {fewer[-1]}" if fewer else "leave it out"
    raise ConfigError(
        f"--context_parallel {ranks}: so many processes share a sample, and {processes} cannot be"
        f" divided into such groups; start a multiple of {ranks}, or {advice}"
    )


def _check_pieces(config: RunConfig, ranks: int) -> None:
    """Raises ConfigError where a process would have no token of some part of a row."""
    length, chunk_len = window_len(config), config.train.chunk_len
    shortest = shortest_superchunk(length, ranks, chunk_len)
    if shortest >= ranks:
        return
    if shortest == length:
        raise ConfigError(
            f"--context_parallel {ranks} has more processes than the {length} tokens that a step"
            " reads of a sample; every one needs a token: use fewer processes or longer samples"
        )
    raise ConfigError(
        f"--context_parallel {ranks} x --chunk_len {chunk_len} leaves {shortest} of {length} tokens"
        f" at the end, too few for {ranks} processes; use --chunk_len"
        f" {_fitting(length, ranks, chunk_len)} or another --ctx_len"
    )


def _fitting(length: int, ranks: int, chunk_len: int | None) -> int:
    """Returns the longest shorter chunk whose last superchunk has a token for every rank."""
    assert chunk_len is not None, "without chunks a row is one superchunk"
    shorter = (
        n for n in range(chunk_len - 1, 0, -1) if shortest_superchunk(length, ranks, n) >= ranks
    )
    # Chunks of the whole row always fit.
    return next(shorter, -(-length // ranks))
