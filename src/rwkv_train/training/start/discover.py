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
from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.config.schema import DataConfig, RunConfig
from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.binidx.manifest import Manifest, manifest_prefix, read_manifest
from rwkv_train.data.samples.token_sources import (
    Source,
    TokenSource,
    characters_of,
    open_source,
    pairs_of,
)
from rwkv_train.data.sampling.held_out import HeldOut, hold_out
from rwkv_train.data.sampling.magic_prime import check_magic_prime, magic_prime
from rwkv_train.errors import DataError
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.training.start.resume_point import Origin


def discover(config: RunConfig, origin: Origin) -> Discovered:
    """Returns what `resolve` may know besides the configuration.

    Raises DataError or CheckpointError when files cannot be used.
    """
    return Discovered(_data(config.data), _start(origin), _machine())


def _start(origin: Origin) -> StartDiscovered:
    """Returns what is known of the beginning of the run."""
    donor = None if origin.donor is None else config_from_shapes(read_shapes(origin.donor))
    return StartDiscovered(
        path=None if origin.path is None else str(origin.path),
        epoch=None if origin.epoch < 0 else origin.epoch,
        model=None if origin.shapes is None else config_from_shapes(origin.shapes),
        donor_model=donor,
        state=None if origin.state is None else _state(origin.state),
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
    gpus = torch.cuda.device_count()
    return MachineDiscovered(
        gpu_count=gpus,
        gpu_has_bf16=gpus > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
    )


def _data(data: DataConfig) -> DataDiscovered | None:
    """Returns what is known of the training data, None at stage 1 without data."""
    if data.data_file is None and data.data_type != "dummy":
        return None
    if mixture_components(data.data_file):
        return _mixed(data)
    source = open_source(data.data_file, data.data_type)
    manifest = None
    if data.data_file is not None and data.data_type == "binidx":
        manifest = read_manifest(data.data_file)
    held_out = held_out_of(data, source)
    held_out_tokens = 0 if held_out is None else held_out.tokens
    return DataDiscovered(
        token_count=source.tokens - held_out_tokens,
        held_out_tokens=held_out_tokens,
        has_loss_mask=_has_mask(data, source, manifest),
        supervised_tokens=None if manifest is None else manifest.supervised_tokens,
        best_prime=_prime(data, source.tokens - held_out_tokens),
        vocab_size=manifest.vocab_size if manifest is not None else _vocabulary(source),
        tokenizer=None if manifest is None else manifest.tokenizer,
    )


def _mixed(data: DataConfig) -> DataDiscovered:
    """Returns what is known of a mixture's components together.

    Raises DataError when they do not fit.
    """
    tokens, has_mask, known = 0, False, {}
    for component in mixture_components(data.data_file):
        own = replace(data, data_file=component.path)
        source, manifest = open_source(component.path, "binidx"), read_manifest(component.path)
        tokens += source.tokens
        has_mask |= _has_mask(own, source, manifest)
        if manifest is not None:
            known[component.path] = (manifest.tokenizer, manifest.vocab_size)
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} {name} ({size})" for path, (name, size) in known.items())
        raise DataError(
            f"--data_file {data.data_file}: the parts were made with different tokenizers: {told}; "
            "make them with one"
        )
    tokenizer, vocab_size = next(iter(known.values()), (None, None))
    return DataDiscovered(
        token_count=tokens, has_loss_mask=has_mask, tokenizer=tokenizer, vocab_size=vocab_size
    )


def held_out_of(data: DataConfig, source: TokenSource) -> HeldOut | None:
    """What --val_split holds out of this source; None without it."""
    if data.val_split is None:
        return None
    return hold_out(source.tokens, data.ctx_len, data.val_split, data.val_ctx_len or data.ctx_len)


def _prime(data: DataConfig, tokens: int) -> int | None:
    """The best prime for so many tokens, None where there is none; a given one is checked."""
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


def _has_mask(data: DataConfig, source: Source, manifest: Manifest | None) -> bool:
    """Whether a loss mask lies beside the data; one that is not used may be damaged."""
    if data.data_type != "binidx":
        return False
    if data.loss_mask == "off":
        return manifest is not None and manifest.sha256_mask is not None
    return find_mask(manifest_prefix(data.data_file), pairs_of(source), manifest) is not None


def _vocabulary(source: TokenSource) -> int | None:
    """Distinct characters of a text source; None for sources of ready tokens."""
    characters = characters_of(source)
    return None if characters is None else len(characters)
