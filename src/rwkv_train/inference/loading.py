"""A model and its tokenizer from a checkpoint file alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.checkpoint.adapter_files import load_adapter, merge_adapter
from rwkv_train.checkpoint.weights import fit_weights, load_weights
from rwkv_train.config.load import read_config
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.data.tokenize.characters import VOCABULARY, read_characters
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.data.tokenize.tokenizer_files import (
    TOKENIZER_BY_ROWS,
    TokenizerRecord,
    identity_of,
    read_record,
)
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import build_model, config_from_shapes


def load_model(
    path: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    wkv_backend: str = "auto",
    states: str | Path | None = None,
    lora: str | Path | None = None,
) -> RWKV:
    """Returns the network in evaluation mode, every size read from the file.

    states: a file of trained initial states, which join or replace those of the checkpoint; with
    them a text starts.  lora: an adapter for the checkpoint, ours or peft's, merged into it.
    Raises CheckpointError or ConfigError.
    """
    # An adapter is added to the weights as they are stored, and the sum rounded once.
    weights = load_weights(path, dtype if lora is None else None)
    if _only_states(weights):
        raise CheckpointError(
            f"{path} holds only trained initial states, which need their base model: give that as "
            f"--load_model, and this file as --load_states"
        )
    config = complete_model(config_from_shapes({k: tuple(v.shape) for k, v in weights.items()}))
    if config.head_qk:
        raise ConfigError(
            f"{path} has a copy head (head_qk), which looks back at every token and has no "
            "recurrent form; it cannot generate with a state of constant size"
        )
    if lora is not None:
        merged = merge_adapter(weights, load_adapter(Path(lora)))
        weights = {name: value.to(dtype) for name, value in merged.items()}
    if states is not None:
        weights |= _load_states(states, dtype)
    # The parameter exists only in a model that was built with states.
    has_states = any(name.endswith("att.time_state") for name in weights)
    model = build_model(config, wkv_backend=wkv_backend, train_states=has_states).to(dtype)
    try:
        # Gaps are a fault here: filled, they would generate from random weights.
        fitted, _ = fit_weights(
            model.state_dict(), weights, partial=None, optional=model.optional_keys
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model.load_state_dict(fitted)
    return model.to(device).eval().requires_grad_(False)


def _only_states(weights: dict[str, Tensor]) -> bool:
    return bool(weights) and all(name.endswith("att.time_state") for name in weights)


def _load_states(path: str | Path, dtype: torch.dtype) -> dict[str, Tensor]:
    states = load_weights(path, dtype)
    if not _only_states(states):
        raise CheckpointError(
            f"--load_states {path} holds more than trained initial states; give a checkpoint of a "
            "run with --train_type states, or leave the option out: a whole model brings its own"
        )
    return states


def tokenizer_of(path: str | Path, vocab_size: int, given: str | None = None) -> Tokenizer:
    """Returns the tokenizer of a checkpoint.

    The one `given`, else the one recorded next to the checkpoint (in it, if it is a folder), else
    the one named in the config.yaml there, else the tokenizer.json of a folder, else the characters
    in the vocab.json there, else the built-in one with as many tokens as the model has rows.

    Raises ConfigError when none of these tells, CheckpointError when it has more tokens than the
    model, or is not the one that was recorded.
    """
    # A checkpoint names no tokenizer; the files of its run do.
    is_folder = Path(path).is_dir()
    folder = Path(path) if is_folder else Path(path).parent
    record = read_record(folder)
    name = given or (None if record is None else record.name)
    saved = folder / "config.yaml"
    if name is None and saved.is_file():
        name = read_config(saved).data.tokenizer
    if name is None and is_folder and (folder / "tokenizer.json").is_file():
        name = str(folder / "tokenizer.json")
    characters = read_characters(folder / VOCABULARY if name is None else Path(name))
    if characters is not None:
        return _fitting(characters, path, vocab_size)
    name = name or TOKENIZER_BY_ROWS.get(vocab_size)
    if name is None:
        raise ConfigError(
            f"no tokenizer is known for {path}: no built-in one has {vocab_size} tokens, and "
            f"{saved} {'names none' if saved.is_file() else 'does not exist'}; give --tokenizer "
            "world, bytes or the path of a tokenizer.json"
        )
    tokenizer = load_tokenizer(name)
    if given is None and record is not None:
        _require_recorded(tokenizer, record, path)
    return _fitting(tokenizer, path, vocab_size)


def _fitting(tokenizer: Tokenizer, path: str | Path, vocab_size: int) -> Tokenizer:
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, {path} only "
            f"{vocab_size} rows; give the tokenizer it was trained with by --tokenizer"
        )
    return tokenizer


def _require_recorded(tokenizer: Tokenizer, record: TokenizerRecord, path: str | Path) -> None:
    found = identity_of(tokenizer.name, tokenizer.path)
    if record.identity not in (None, found):
        raise CheckpointError(
            f"{tokenizer.name} is not the tokenizer that {path} was trained with: its contents "
            "differ; give the original by --tokenizer"
        )
