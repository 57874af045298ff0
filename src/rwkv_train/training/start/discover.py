"""Looks at disk and machine once, before the configuration is resolved."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch

from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.config.discovered import Discovered
from rwkv_train.config.load import saved_values
from rwkv_train.config.mixture_list import parts_of
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
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.training.start.resume_point import Origin


def discover(config: RunConfig, origin: Origin) -> Discovered:
    """Facts for `resolve`. Raises DataError or CheckpointError when files cannot be used."""
    data = config.data
    gpus = torch.cuda.device_count()
    state = origin.state
    common = {
        "start": origin.kind,
        "start_path": None if origin.path is None else str(origin.path),
        "start_epoch": origin.epoch,
        "start_model": None if origin.shapes is None else config_from_shapes(origin.shapes),
        "donor_model": None
        if origin.donor is None
        else config_from_shapes(read_shapes(origin.donor)),
        "state_warmup_steps": None if state is None else state.get("warmup_steps"),
        "state_optimizer": None if state is None else state["optimizer"],
        "has_bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None,
        "state_config": {} if state is None else saved_values(state.get("config", "{}")),
        "gpu_count": gpus,
        "gpu_has_bf16": gpus > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
    }
    if data.data_file is None and data.data_type != "dummy":
        if config.train.train_stage == 1:
            return Discovered(**common)
        raise ConfigError(
            "--data_file is missing: give the prefix of a .bin/.idx pair made by make_data.py"
        )
    if parts_of(data.data_file):
        return Discovered(**_mixed(data), **common)
    source = open_source(data.data_file, data.data_type)
    manifest = read_manifest(data.data_file) if data.data_type == "binidx" else None
    held_out = held_out_of(data, source)
    held_out_tokens = 0 if held_out is None else held_out.tokens
    return Discovered(
        token_count=source.tokens - held_out_tokens,
        held_out_tokens=held_out_tokens,
        has_loss_mask=_has_mask(data, source, manifest),
        supervised_tokens=None if manifest is None else manifest.supervised_tokens,
        best_prime=_prime(data, source.tokens - held_out_tokens),
        data_vocab_size=manifest.vocab_size if manifest is not None else _vocabulary(source),
        data_tokenizer=None if manifest is None else manifest.tokenizer,
        **common,
    )


def _mixed(data: DataConfig) -> dict[str, object]:
    """What is known of the parts of a mixture together; DataError when they do not fit."""
    tokens, has_mask, known = 0, False, {}
    for part in parts_of(data.data_file):
        own = replace(data, data_file=part.path)
        source, manifest = open_source(part.path, "binidx"), read_manifest(part.path)
        tokens += source.tokens
        has_mask |= _has_mask(own, source, manifest)
        if manifest is not None:
            known[part.path] = (manifest.tokenizer, manifest.vocab_size)
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} {name} ({size})" for path, (name, size) in known.items())
        raise DataError(
            f"--data_file {data.data_file}: the parts were made with different tokenizers: {told}; "
            "make them with one"
        )
    tokenizer, vocab_size = next(iter(known.values()), (None, None))
    return {
        "token_count": tokens,
        "has_loss_mask": has_mask,
        "data_tokenizer": tokenizer,
        "data_vocab_size": vocab_size,
    }


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
