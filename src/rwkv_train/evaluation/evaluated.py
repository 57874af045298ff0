"""The subject of an evaluation: a checkpoint, with states or an adapter, and its tokenizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.inference.loading import load_model, tokenizer_of
from rwkv_train.inference.machine import device_and_precision
from rwkv_train.models.backbone import RWKV

# What --prefix says: whether the end of a document stands in front of every text.
PREFIXES = {"0": True, "none": False}


class Evaluated(NamedTuple):
    """A model, its tokenizer, and what a result says of them."""

    model: RWKV
    tokenizer: Tokenizer
    about: dict[str, Any]


def open_evaluated(
    load_model_from: str,
    *,
    load_states: str | None = None,
    lora: str | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    wkv_backend: str = "auto",
) -> Evaluated:
    """Returns a model that is ready to be scored; the arguments are the command line's.

    Raises CheckpointError, ConfigError or DataError.
    """
    where, number_format = device_and_precision(device, precision)
    model = load_model(
        load_model_from,
        device=torch.device(where),
        dtype=DTYPES[number_format],
        wkv_backend=wkv_backend,
        states=load_states,
        lora=lora,
    )
    found = tokenizer_of(load_model_from, model.config.vocab_size, tokenizer)
    about = {
        "checkpoint": load_model_from,
        "states": load_states,
        "lora": lora,
        "version": model.config.rwkv_version,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokenizer": found.name,
        "precision": number_format,
        "device": where,
    }
    return Evaluated(model, found, {name: v for name, v in about.items() if v is not None})
