"""The names and layout of web-rwkv's .st files, which Ai00 serves, in both directions.

The files are safetensors of fp16. RWKV-4 is stored as in its checkpoint. What differs:

    RWKV-5      att.time_faaaa           time_first
    RWKV-6      att.time_faaaa           time_first
                att., ffn.time_maa_X     time_mix_X
                att.time_maa_w{1,2}, att.time_decay_w{1,2}     last two axes swapped
    RWKV-7      att.{w,a,v,g}{1,2}                             last two axes swapped
    states      att.time_state           [H, N_key, N_value], last two axes swapped

A file of trained states is named X.state there and holds nothing else.

Source: web-rwkv's converters (assets/scripts) and its loader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rwkv_train.checkpoint.fla_names import with_first_value_residual
from rwkv_train.errors import CheckpointError

_SWAPPED = re.compile(r"blocks\.\d+\.att\.(time_(maa|decay)_w[12]|[wavg][12]|time_state)")
_LOW_RANK = re.compile(r"blocks\.\d+\.att\.[wavg]([12])")
_STATE = ".att.time_state"
_ENDINGS = (".st", ".state")


def to_web_rwkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors, or trained states, by web-rwkv's names in its layout.

    Numbers stay as they are: the format's fp16 is the writer's.
    """
    found = {}
    for key, value in weights.items():
        name = key.lower().replace("time_faaaa", "time_first").replace("time_maa", "time_mix")
        found[name] = _swap(value) if _SWAPPED.fullmatch(key) else value.contiguous()
    return found


def from_web_rwkv(path: Path, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns web-rwkv's tensors under checkpoint keys, in the checkpoint's layout.

    Entries of any other file are returned as they are.  path: its ending decides where shapes
    cannot. RWKV-7's layer 0 gets the v0, v1, v2 that it may lack, as zeros. Raises CheckpointError
    when the layout cannot be told.
    """
    if entries and all(key.endswith(_STATE) for key in entries):
        swapped = path.suffix in _ENDINGS
        return {key: _swap(value) if swapped else value for key, value in entries.items()}
    if "blocks.0.att.time_mix_x" in entries:
        return _renamed(entries, {"time_first": "time_faaaa", "time_mix": "time_maa"})
    # RWKV-4 has this name too, but no group norm.
    if "blocks.0.att.time_first" in entries and "blocks.0.att.ln_x.weight" in entries:
        return _renamed(entries, {"time_first": "time_faaaa"})
    if "blocks.0.att.r_k" in entries and _has_swapped_pairs(path, entries):
        return with_first_value_residual(_renamed(entries, {}))
    return dict(entries)


def _renamed(entries: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, value in entries.items():
        name = key
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        found[name] = _swap(value) if _SWAPPED.fullmatch(name) else value
    return found


def _has_swapped_pairs(path: Path, entries: Mapping[str, Tensor]) -> bool:
    """Tells whether an RWKV-7's low-rank pairs are [R, D], [D, R] instead of [D, R], [R, D]."""
    width = entries["emb.weight"].shape[-1] if "emb.weight" in entries else 0
    found = set()
    for key, value in entries.items():
        match = _LOW_RANK.fullmatch(key)
        # A rank that is the width tells nothing.
        if match and value.dim() == 2 and value.shape[0] != value.shape[1]:
            found.add(value.shape[0 if match.group(1) == "2" else 1] == width)
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds low-rank matrices of RWKV-7 in both layouts, RWKV-LM's [D, R] and "
            f"web-rwkv's [R, D]; give the .pth it was made from"
        )
    return found.pop() if found else path.suffix in _ENDINGS


def _swap(value: Tensor) -> Tensor:
    return value.transpose(-1, -2).contiguous()
