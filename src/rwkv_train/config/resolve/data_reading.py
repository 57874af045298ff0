"""Resolves the reading of the data: sampling, prime, mask, and a mixture's changing weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rwkv_train.config.discovered import DataDiscovered, Discovered, StateDiscovered
from rwkv_train.config.mixture_list import mixture_components, shown_data_file, weights_change
from rwkv_train.config.resolved import ResolvedData, not_narrowed
from rwkv_train.config.run_length import StepShape
from rwkv_train.config.schema import DataConfig, RunConfig
from rwkv_train.errors import ConfigError


def resolve_data(config: RunConfig, discovered: Discovered, lines: list[str]) -> ResolvedData:
    """Returns the data section with its sampling, prime and tokenizer.

    Raises ConfigError when the data is too small or was written with another tokenizer.
    """
    given, found = config.data, discovered.data
    # RWKV-LM's permutation, too, exists for binidx data only.
    sampling = given.sampling or ("permutation" if given.data_type == "binidx" else "random")
    if given.sampling is None and sampling == "random":
        lines.append(f"sampling random: how {given.data_type} is read")
    data = ResolvedData(
        sampling=sampling,
        val_ctx_len=given.ctx_len if given.val_ctx_len is None else given.val_ctx_len,
        **not_narrowed(given, ResolvedData),
    )
    if found is None:
        return data
    data = dataclasses.replace(
        data, tokenizer=_tokenizer(data, found), loss_mask=_loss_mask(data, found, lines)
    )
    if sampling == "random":
        _check_random(data, found.token_count)
        return data
    # Every part of a mixture has a prime of its own; one of the whole means nothing.
    if mixture_components(data.data_file):
        return data
    prime = _best_prime(data, found, lines) if data.magic_prime is None else data.magic_prime
    _check_offset(data, prime, found.token_count)
    return dataclasses.replace(data, magic_prime=prime)


def resolve_mixture(
    data: ResolvedData, step: StepShape, total: int | None, state: StateDiscovered | None
) -> ResolvedData:
    """Returns the data section with mix_tokens, where weights change: a resumed run keeps its own.

    total: optimizer steps of the schedule. Raises ConfigError when the run has no end over which
    the weights could change.
    """
    if not weights_change(mixture_components(data.data_file)) or data.mix_tokens is not None:
        return data
    before = {} if state is None else state.config
    saved = before.get("mix_tokens")
    if isinstance(saved, int) and before.get("data_file") == data.data_file:
        return dataclasses.replace(data, mix_tokens=saved)
    if total is None:
        raise ConfigError(
            f"--data_file {shown_data_file(data.data_file)}: its weights change over the run, which"
            " has no end; give --mix_tokens or --exit_tokens"
        )
    return dataclasses.replace(data, mix_tokens=total * step.tokens)


def _tokenizer(data: DataConfig, known: DataDiscovered) -> str | None:
    """Returns the tokenizer that is given, else the one that the data names."""
    given, found = data.tokenizer, known.tokenizer
    # Two paths may name the same file, moved; a built-in tokenizer is itself only.
    if given and found and given != found and {given, found} & {"world", "bytes"}:
        raise ConfigError(
            f"--tokenizer {given}: {shown_data_file(data.data_file)} was written with {found};"
            " leave the flag out"
        )
    return given or found


def _loss_mask(
    data: DataConfig, found: DataDiscovered, lines: list[str]
) -> Literal["auto", "on", "off"]:
    """Returns on where there is a mask that is used, off where it is not, else what was given."""
    if not found.has_loss_mask:
        if data.loss_mask == "on":
            raise ConfigError(
                f"--loss_mask on: there is no .mask next to {shown_data_file(data.data_file)};"
                " make the data with make_data.py --chat_template, or leave the flag out to train"
                " on all tokens"
            )
        return data.loss_mask
    if data.loss_mask == "off":
        lines.append("loss_mask off: the data has a mask, which is not used: all tokens count")
        return "off"
    counted = ""
    if found.supervised_tokens is not None and found.token_count:
        share = found.supervised_tokens / found.token_count
        counted = f", {found.supervised_tokens:,} of the {found.token_count:,} tokens ({share:.1%})"
    lines.append(f"loss_mask on: the loss is the mean over what the data's mask counts{counted}")
    return "on"


def _check_random(data: DataConfig, token_count: int) -> None:
    """Raises ConfigError when the data has no position at which a sample could start."""
    # RWKV-LM draws starts from [0, tokens - ctx_len - 1): there must be one.
    if token_count < data.ctx_len + 2:
        raise ConfigError(
            f"--ctx_len {data.ctx_len} needs at least {data.ctx_len + 2} tokens, but"
            f" {data.data_file or data.data_type} has {token_count}; use a smaller --ctx_len"
        )


def _best_prime(data: DataConfig, found: DataDiscovered, lines: list[str]) -> int:
    """Returns the computed prime; raises ConfigError where the data is too small for one."""
    # The smallest prime that fits is 2 and stays below the slots: three windows at least.
    if found.best_prime is None:
        raise ConfigError(
            f"{data.data_file} has {found.token_count} tokens, too few for the permutation at"
            f" --ctx_len {data.ctx_len}, which needs {3 * data.ctx_len}; use a smaller --ctx_len or"
            " --sampling random"
        )
    lines.append(f"magic_prime {found.best_prime}: computed from {found.token_count} tokens")
    return found.best_prime


def _check_offset(data: DataConfig, prime: int, token_count: int) -> None:
    """Raises ConfigError when --sample_offset moves the last sample beyond the data."""
    # The last window starts at (prime - 1) x ctx_len and has ctx_len + 1 tokens.
    reach = prime * data.ctx_len + data.sample_offset
    if data.sample_offset and reach >= token_count:
        most = token_count - 1 - prime * data.ctx_len
        raise ConfigError(
            f"--sample_offset {data.sample_offset} reads up to token {reach}, but"
            f" {data.data_file} has only {token_count} tokens; use at most {max(0, most)}"
        )
