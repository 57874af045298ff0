"""The subject of an evaluation: a checkpoint, with states or an adapter, and its tokenizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.inference.machine import device_and_precision
from rwkv_train.inference.opening import open_model
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
    weights: str = "float",
) -> Evaluated:
    """Returns a model that is ready to be scored; the arguments are the command line's.

    Raises CheckpointError, ConfigError or DataError.
    """
    where, number_format = device_and_precision(device, precision)
    model, found, _ = open_model(
        load_model_from,
        device=device,
        precision=precision,
        tokenizer=tokenizer,
        states=load_states,
        lora=lora,
        wkv_backend=wkv_backend,
        weights=weights,
    )
    tensors = model.state_dict().items()
    about = {
        "checkpoint": load_model_from,
        "states": load_states,
        "lora": lora,
        "version": model.config.rwkv_version,
        "parameters": sum(v.numel() for name, v in tensors if not name.endswith(".scale")),
        "tokenizer": found.name,
        "precision": number_format,
        "weights": None if weights == "float" else weights,
        "device": where,
    }
    return Evaluated(model, found, {name: v for name, v in about.items() if v is not None})
