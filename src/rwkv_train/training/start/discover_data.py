"""Looks at the training data once, before the configuration is resolved; without torch."""

from __future__ import annotations

from rwkv_train.config.discovered import DataDiscovered
from rwkv_train.config.mixture_list import shown_data_file
from rwkv_train.config.schema import DataConfig
from rwkv_train.data.samples.token_sources import characters_of
from rwkv_train.data.sampling.magic_prime import check_magic_prime, magic_prime
from rwkv_train.errors import DataError, first_few
from rwkv_train.training.start.data_files import OpenedData, open_data_files


def discover_data(data: DataConfig) -> tuple[DataDiscovered, OpenedData]:
    """Returns what is known of the data, and its files; DataError when they cannot be used."""
    opened = open_data_files(data)
    return (_mixture(data, opened) if opened.is_mixture else _single(data, opened)), opened


def _single(data: DataConfig, opened: OpenedData) -> DataDiscovered:
    """Returns what is known of a single data set."""
    (files,) = opened.parts
    held_out_tokens = 0 if opened.held_out is None else opened.held_out.tokens
    tokens = files.source.tokens - held_out_tokens
    characters, manifest = characters_of(files.source), files.manifest
    vocab_size = None if characters is None else len(characters)
    return DataDiscovered(
        token_count=tokens,
        held_out_tokens=held_out_tokens,
        has_loss_mask=files.has_mask,
        supervised_tokens=None if manifest is None else manifest.supervised_tokens,
        # Of what is left to train on: held-out slots lie outside the permutation.
        best_prime=_prime(data, tokens),
        vocab_size=vocab_size if manifest is None else manifest.vocab_size,
        tokenizer=None if manifest is None else manifest.tokenizer,
    )


def _mixture(data: DataConfig, opened: OpenedData) -> DataDiscovered:
    """Returns what is known of a mixture's components together.

    Raises DataError when they do not fit.
    """
    known: dict[tuple[str, int], list[str]] = {}
    for files in opened.parts:
        if files.manifest is not None:
            made_with = files.manifest.tokenizer, files.manifest.vocab_size
            known.setdefault(made_with, []).append(files.name)
    # The same id would mean other text in other samples.
    if len(known) > 1:
        told = [f"{name} ({size}) {first_few(paths)}" for (name, size), paths in known.items()]
        raise DataError(
            f"--data_file {shown_data_file(data.data_file)}: the parts were made with different "
            f"tokenizers: {first_few(told, separator='; ')}; make them with one"
        )
    tokenizer, vocab_size = next(iter(known), (None, None))
    return DataDiscovered(
        token_count=sum(files.source.tokens for files in opened.parts),
        has_loss_mask=any(files.has_mask for files in opened.parts),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
    )


def _prime(data: DataConfig, tokens: int) -> int | None:
    """Returns the best prime for so many tokens, None where there is none.

    Raises DataError for a given prime that does not fit, and where sampling needs one.
    """
    if data.sampling == "random" or data.data_type != "binidx":
        return None
    if data.magic_prime is not None:
        check_magic_prime(data.magic_prime, tokens, data.ctx_len)
    try:
        return magic_prime(tokens, data.ctx_len)
    except DataError:
        if data.sampling == "permutation":
            raise
        return None
