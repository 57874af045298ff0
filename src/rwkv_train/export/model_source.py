"""The model that is exported: weights by RWKV-LM's names and shapes, sizes, tokenizer, states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.checkpoint.adapter_files import load_adapter, merge_adapter
from rwkv_train.checkpoint.number_formats import precision_of
from rwkv_train.checkpoint.weights import fit_weights, load_weights
from rwkv_train.config.load import read_config
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.inference.loading import tokenizer_of
from rwkv_train.models.registry import build_model, config_from_shapes

_STATE = ".att.time_state"
_USUAL_LENGTH = 1024


@dataclass(frozen=True)
class SourceModel:
    """A model and what belongs to it.

    path: the file or folder it was read from.  weights: checkpoint key -> tensor as stored, in
    RWKV-LM's order and shapes, nothing missing.  states: trained initial states, apart.
    tokenizer: None, with the reason in `no_tokenizer`, where none is known.  merged: names of the
    files whose changes are in the weights or states.
    """

    path: Path
    weights: dict[str, Tensor]
    config: ResolvedModel
    tokenizer: Tokenizer | None = None
    no_tokenizer: str = ""
    states: dict[str, Tensor] = field(default_factory=dict)
    merged: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the largest tensor, which is that of the matrices."""
        return max(self.weights.values(), key=Tensor.numel).dtype

    @property
    def trained_length(self) -> int:
        """The tokens of a training sample, which programs ask for; 1024 where it is not known."""
        saved = self.run_folder / "config.yaml"
        return (read_config(saved).data.ctx_len if saved.is_file() else None) or _USUAL_LENGTH

    @property
    def run_folder(self) -> Path:
        """The folder with the files of the run that made the model."""
        return self.path if self.path.is_dir() else self.path.parent

    def in_words(self) -> str:
        """Returns the model's kind and size in a line."""
        c = self.config
        tokenizer = self.tokenizer.name if self.tokenizer else "not known"
        return (
            f"RWKV-{c.rwkv_version}, {c.n_layer} layers, width {c.n_embd}, {c.vocab_size} tokens, "
            f"{precision_of(self.dtype)}, tokenizer {tokenizer}"
        )


def read_source(
    path: Path,
    *,
    tokenizer: str | None = None,
    lora: Path | None = None,
    load_states: Path | None = None,
) -> SourceModel:
    """Reads a checkpoint or an exported folder with its tokenizer, and merges what is given.

    lora: an adapter, merged into the matrices.  load_states: a file of trained initial states,
    which replace those of the checkpoint.  Raises CheckpointError or ConfigError.
    """
    loaded = load_weights(path)
    states = {key: value for key, value in loaded.items() if key.endswith(_STATE)}
    weights = {key: value for key, value in loaded.items() if key not in states}
    if not weights:
        raise CheckpointError(
            f"{path} holds only trained initial states; give their base model as --load_model, and "
            f"this file as --load_states"
        )
    weights, config = complete_weights(path, weights)
    if lora is not None:
        stored = {key: value.dtype for key, value in weights.items()}
        changed = merge_adapter(weights, load_adapter(lora))
        weights = {key: value.to(stored[key]) for key, value in changed.items()}
    if load_states is not None:
        states = _states_alone(load_states)
    _require_fitting(states, config, load_states or path)
    merged = tuple(file.name for file in (lora, load_states) if file is not None)
    config = _with_run_settings(path, config)
    model = SourceModel(path, weights, config, states=states, merged=merged)
    try:
        found = tokenizer_of(path, config.vocab_size, tokenizer)
    except ConfigError as error:
        if tokenizer is not None:
            raise
        return replace(model, no_tokenizer=error.in_one_line())
    return replace(model, tokenizer=found)


def complete_weights(
    path: Path, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], ResolvedModel]:
    """Returns a model's weights as RWKV-LM stores them, and its sizes.

    Restores axes of size 1, and as zeros the tensors that only training needs, which exports
    leave out.  path: named in messages.  Raises CheckpointError or ConfigError.
    """
    config = complete_model(config_from_shapes({k: tuple(v.shape) for k, v in weights.items()}))
    # Shapes only: a second copy of a large model would not fit.
    with torch.device("meta"):
        model = build_model(config)
    try:
        fitted, report = fit_weights(
            model.state_dict(), weights, partial=None, optional=model.optional_keys
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    dtype = max(weights.values(), key=Tensor.numel).dtype
    for key in report.filled:
        fitted[key] = torch.zeros(fitted[key].shape, dtype=dtype)
    return fitted, config


def _with_run_settings(path: Path, config: ResolvedModel) -> ResolvedModel:
    """Adds what leaves no trace in the tensors, from the config.yaml of the run."""
    saved = (path if path.is_dir() else path.parent) / "config.yaml"
    if not saved.is_file():
        return config
    return replace(config, head_size_divisor=read_config(saved).model.head_size_divisor)


def _states_alone(path: Path) -> dict[str, Tensor]:
    states = load_weights(path)
    if not all(key.endswith(_STATE) for key in states):
        raise CheckpointError(
            f"--load_states {path} holds more than trained initial states; give a checkpoint of a "
            "run with --train_type states, or leave the option out: a whole model brings its own"
        )
    return states


def _require_fitting(states: Mapping[str, Tensor], config: ResolvedModel, path: Path) -> None:
    if not states:
        return
    with torch.device("meta"):
        shapes = build_model(config, train_states=True).state_dict()
    expected = {key: tuple(value.shape) for key, value in shapes.items() if key.endswith(_STATE)}
    found = {key: tuple(value.shape) for key, value in states.items()}
    if found != expected:
        first = next(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        raise CheckpointError(
            f"{path} holds trained initial states of another model: {first} is "
            f"{_shape(found.get(first))}, expected {_shape(expected.get(first))}; give those that "
            f"were trained on this base model"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
