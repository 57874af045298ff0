"""Names of RWKV's exports for Hugging Face and web-rwkv, translated into checkpoint keys.

transformers (RWKV-4; the hub's code for RWKV-5 and 6) renames parts of a key:

    rwkv.blocks.3.attention.time_mix_key          blocks.3.att.time_mix_k

Those of fla and rwkv7-hf are in `fla_names`, those of web-rwkv in `web_rwkv_names`.

Source: transformers 4.40, models/rwkv.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rwkv_train.checkpoint.fla_names import DIVISOR_KEY, from_fla, is_fla
from rwkv_train.checkpoint.web_rwkv_names import from_web_rwkv
from rwkv_train.checkpoint.weight_folder import number_beside

_TRANSFORMERS = "rwkv.blocks."
_TRANSFORMERS_PARTS = {
    "embeddings": "emb",
    "pre_ln": "ln0",
    "attention": "att",
    "feed_forward": "ffn",
    "time_mix_key": "time_mix_k",
    "time_mix_value": "time_mix_v",
    "time_mix_receptance": "time_mix_r",
    "time_mix_gate": "time_mix_g",
}


def checkpoint_keys(path: Path, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `entries` under checkpoint keys, those of no export as they are.

    path: the folder or file they are from.  Tensors of shape alone (meta) are translated alike.
    Raises CheckpointError for an export with tensors that have no unambiguous place.
    """
    if any(key.startswith(_TRANSFORMERS) for key in entries):
        return {_from_transformers(key): value for key, value in entries.items()}
    if is_fla(entries):
        return from_fla(path, entries, number_beside(path, DIVISOR_KEY))
    return from_web_rwkv(path, entries)


def _from_transformers(key: str) -> str:
    parts = key.removeprefix("rwkv.").split(".")
    return ".".join(_TRANSFORMERS_PARTS.get(part, part) for part in parts)
