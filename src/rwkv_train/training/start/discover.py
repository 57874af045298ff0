"""Looks at disk and machine once, before the configuration is resolved."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

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
from rwkv_train.find_gpus import find_gpus
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.training.start.data_files import OpenedData, open_data_files
from rwkv_train.training.start.resume_point import Fresh, FromState, ResumePoint


def discover(config: RunConfig, point: ResumePoint) -> tuple[Discovered, OpenedData | None]:
    """Returns what `resolve` needs to know, and the data that was opened to know it.

    No data: None, which is possible at stage 1 only. Raises DataError or CheckpointError when
    files cannot be used.
    """
    data = config.data
    if data.data_file is None and data.data_type != "dummy":
        assert config.train.train_stage == 1, "check_fields refuses training without data"
        return Discovered(None, _start(point), _machine()), None
    opened = open_data_files(data)
    found = _mixture(data, opened) if opened.is_mixture else _single(data, opened)
    return Discovered(found, _start(point), _machine()), opened


def _start(point: ResumePoint) -> StartDiscovered:
    """Returns what is known of the beginning of the run."""
    if isinstance(point, Fresh):
        donor = None if point.donor is None else config_from_shapes(read_shapes(point.donor))
        return StartDiscovered(donor_model=donor)
    return StartDiscovered(
        path=str(point.path),
        epoch=None if point.epoch < 0 else point.epoch,
        model=config_from_shapes(dict(point.shapes)),
        state=_state(point.state) if isinstance(point, FromState) else None,
    )


def _state(state: Mapping[str, Any]) -> StateDiscovered:
    """Returns what is known of the run that wrote a training state."""
    return StateDiscovered(
        optimizer=state["optimizer"],
        warmup_steps=state.get("warmup_steps"),
        config=saved_values(state.get("config", "{}")),
    )


def _machine() -> MachineDiscovered:
    """Returns what is known of this machine."""
    found = find_gpus()
    return MachineDiscovered(
        gpu_count=found.count,
        gpu_has_bf16=found.has_bf16,
        gpu_name=found.oldest,
        gpu_fault=found.fault,
        no_gpu=found.reason,
        # Looked up, not imported: its import prints, and fails without a GPU.
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
    )


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
    known = {
        files.name: (files.manifest.tokenizer, files.manifest.vocab_size)
        for files in opened.parts
        if files.manifest is not None
    }
    # The same id would mean other text in other samples.
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} {name} ({size})" for path, (name, size) in known.items())
        raise DataError(
            f"--data_file {data.data_file}: the parts were made with different tokenizers: {told}; "
            "make them with one"
        )
    tokenizer, vocab_size = next(iter(known.values()), (None, None))
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
