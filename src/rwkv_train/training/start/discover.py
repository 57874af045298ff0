"""Looks at disk and machine once, before the configuration is resolved."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.config.discovered import (
    DataDiscovered,
    Discovered,
    MachineDiscovered,
    StartDiscovered,
    StateDiscovered,
)
from rwkv_train.config.load import saved_values
from rwkv_train.config.schema import DataConfig, RunConfig
from rwkv_train.data.samples.token_sources import characters_of
from rwkv_train.data.sampling.magic_prime import check_magic_prime, magic_prime
from rwkv_train.errors import DataError
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.training.start.data_files import DataFiles, OpenedData, open_data_files
from rwkv_train.training.start.resume_point import Fresh, FromState, ResumePoint


def discover(config: RunConfig, point: ResumePoint) -> tuple[Discovered, OpenedData | None]:
    """Returns what `resolve` needs to know, and the data that was opened to know it.

    No data: None, which is possible at stage 1 only. Raises DataError or CheckpointError when
    files cannot be used.
    """
    found = _about_start(point)
    data = config.data
    if data.data_file is None and data.data_type != "dummy":
        assert config.train.train_stage == 1, "check_fields refuses training without data"
        return found, None
    opened = open_data_files(data)
    if opened.is_mixture:
        return _with_mixture(found, data, opened.parts), opened
    return _with_data(found, data, opened), opened


def _about_start(point: ResumePoint) -> Discovered:
    """Returns what is known without the data: of the resume point and of the machine."""
    gpus = torch.cuda.device_count()
    found = Discovered(
        start=point.kind,
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
        gpu_count=gpus,
        gpu_has_bf16=gpus > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
    )
    if isinstance(point, Fresh):
        # A donor gives its sizes only where the user gives none of his own.
        donor = None if point.donor is None else config_from_shapes(read_shapes(point.donor))
        return replace(found, donor_model=donor)
    found = replace(
        found,
        start_path=str(point.path),
        start_epoch=point.epoch,
        start_model=config_from_shapes(dict(point.shapes)),
    )
    if not isinstance(point, FromState):
        return found
    return replace(
        found,
        state_warmup_steps=point.state.get("warmup_steps"),
        state_optimizer=point.state["optimizer"],
        state_config=saved_values(point.state.get("config", "{}")),
    )


def _with_data(found: Discovered, data: DataConfig, opened: OpenedData) -> Discovered:
    """Returns `found` with what is known of a single data set."""
    files = opened.parts[0]
    held_out_tokens = 0 if opened.held_out is None else opened.held_out.tokens
    tokens = files.source.tokens - held_out_tokens
    characters = characters_of(files.source)
    manifest = files.manifest
    vocab_size = None if characters is None else len(characters)
    return replace(
        found,
        token_count=tokens,
        held_out_tokens=held_out_tokens,
        has_loss_mask=files.has_mask,
        supervised_tokens=None if manifest is None else manifest.supervised_tokens,
        best_prime=_prime(data, tokens),
        data_vocab_size=vocab_size if manifest is None else manifest.vocab_size,
        data_tokenizer=None if manifest is None else manifest.tokenizer,
    )


def _with_mixture(found: Discovered, data: DataConfig, parts: tuple[DataFiles, ...]) -> Discovered:
    """Returns `found` with what is known of all parts of a mixture together.

    Raises DataError when they do not fit.
    """
    known = {
        part.name: (part.manifest.tokenizer, part.manifest.vocab_size)
        for part in parts
        if part.manifest is not None
    }
    # The same id would mean different text in different samples.
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} {name} ({size})" for path, (name, size) in known.items())
        raise DataError(
            f"--data_file {data.data_file}: the parts were made with different tokenizers: {told}; "
            "make them with one"
        )
    tokenizer, vocab_size = next(iter(known.values()), (None, None))
    return replace(
        found,
        token_count=sum(part.source.tokens for part in parts),
        has_loss_mask=any(part.has_mask for part in parts),
        data_tokenizer=tokenizer,
        data_vocab_size=vocab_size,
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
