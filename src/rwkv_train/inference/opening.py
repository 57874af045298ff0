"""The way in from Python: `rwkv_train.load_model(path)`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.inference.int8_loss import rounded_to_int8
from rwkv_train.inference.loading import load_model, tokenizer_of
from rwkv_train.inference.machine import (
    DEVICE_NAMES,
    PRECISION_NAMES,
    WEIGHT_NAMES,
    device_and_precision,
)
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.initial_state import initial_state
from rwkv_train.models.state import ModelState

_log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A model ready for use: `logits, state = model(tokens, state)` with tokens [1, T].

    state: what a text begins with; the trained initial state where there is one.
    """

    model: RWKV
    tokenizer: Tokenizer
    state: ModelState


def open_model(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    tokenizer: str | None = None,
    states: str | Path | None = None,
    lora: str | Path | None = None,
    wkv_backend: str = "auto",
    weights: str = "float",
) -> LoadedModel:
    """Returns a checkpoint's model, its tokenizer and the state that a text begins with.

    path: a checkpoint, .pth or .safetensors, or a folder of Hugging Face's.
    device: auto, cpu or cuda.  precision: fp32, bf16, fp16, or auto, which
    is fp32 on a CPU, bf16 on a GPU and fp16 on one before Ampere.
    tokenizer: world, bytes or a file; None: the run's own.  states: trained initial states for the
    checkpoint.  lora: an adapter for it.  wkv_backend: as --wkv_backend.
    weights: float, as precision says, or int8, for a CPU: matrices rounded, with a scale per row;
    the log says what that changes.
    Raises CheckpointError, ConfigError or DataError in words for a user.
    """
    _require_known("device", device, DEVICE_NAMES)
    _require_known("precision", precision, PRECISION_NAMES)
    _require_known("weights", weights, WEIGHT_NAMES)
    where, dtype = device_and_precision(device, precision)
    if weights == "int8" and where != "cpu":
        raise ConfigError("int8 weights are for a CPU and the model is on a GPU; use device cpu")
    model = load_model(
        path,
        device=torch.device(where),
        dtype=DTYPES[dtype],
        wkv_backend=wkv_backend,
        states=states,
        lora=lora,
    )
    found = tokenizer_of(path, model.config.vocab_size, tokenizer)
    if weights == "int8":
        _log.warning("%s", rounded_to_int8(model, found))
    return LoadedModel(model, found, initial_state(model))


def _require_known(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f"{name} is {given!r}, expected one of {', '.join(known)}")
