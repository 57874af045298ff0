"""Names of RWKV's exports for Hugging Face, translated into checkpoint keys.

transformers (RWKV-4; the hub's code for RWKV-5 and 6) renames parts of a key. fla (RWKV-7)
also stores its low-rank pairs transposed, their vector as the bias of the second matrix:

    rwkv.blocks.3.attention.time_mix_key          blocks.3.att.time_mix_k
    model.layers.3.attn.w_lora.lora.0.weight      blocks.3.att.w1, transposed
    model.layers.3.attn.w_lora.lora.2.bias        blocks.3.att.w0

Source: transformers 4.40, models/rwkv; flash-linear-attention 0.4, models/rwkv7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from rwkv_train.errors import CheckpointError

_TRANSFORMERS = "rwkv.blocks."
_FLA = re.compile(r"layers\.\d+\.(attn|attn_norm|ffn_norm)\.")

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
_FLA_OUTER = {
    "embeddings.weight": "emb.weight",
    "lm_head.weight": "head.weight",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
}
_FLA_PARTS = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "attn.g_norm": "att.ln_x",
    "ffn.key": "ffn.key",
    "ffn.value": "ffn.value",
}
_FLA_MATRIX = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_FLA_VECTOR = re.compile(r"layers\.(\d+)\.(?:(attn)\.(x_[rwkvag]|k_k|k_a|r_k)|ffn\.x_k)")
_FLA_PAIR = re.compile(r"layers\.(\d+)\.attn\.([wavg])_lora\.lora\.([02])\.(weight|bias)")

_Entry = TypeVar("_Entry")


def checkpoint_keys(
    path: Path, entries: Mapping[str, _Entry], transposed: Callable[[_Entry], _Entry]
) -> dict[str, _Entry]:
    """Returns `entries` under checkpoint keys, those of neither export as they are.

    transposed: gives the value of a transposed matrix.  Raises CheckpointError for an export with
    tensors that have no unambiguous place.
    """
    if any(key.startswith(_TRANSFORMERS) for key in entries):
        return {_from_transformers(key): value for key, value in entries.items()}
    if not any(_FLA.match(key) for key in entries):
        return dict(entries)
    found = {}
    for key, value in entries.items():
        name, turned = _from_fla(path, key)
        found[name] = transposed(value) if turned else value
    return found


def _from_transformers(key: str) -> str:
    parts = key.removeprefix("rwkv.").split(".")
    return ".".join(_TRANSFORMERS_PARTS.get(part, part) for part in parts)


def _from_fla(path: Path, key: str) -> tuple[str, bool]:
    """Returns the checkpoint key, and whether the matrix is to be transposed."""
    if key in _FLA_OUTER:
        return _FLA_OUTER[key], False
    pair = _FLA_PAIR.fullmatch(key)
    if pair:
        layer, letter, place, kind = pair.groups()
        # lora.0 is the first matrix of the pair (w1), lora.2 the second (w2), whose bias is w0.
        number = "1" if place == "0" else ("2" if kind == "weight" else "0")
        # No RWKV-7 has a bias in the first matrix; such a key goes on to the error below.
        if (place, kind) != ("0", "bias"):
            return f"blocks.{layer}.att.{letter}{number}", kind == "weight"
    vector = _FLA_VECTOR.fullmatch(key)
    if vector:
        layer, attention, name = vector.groups()
        return f"blocks.{layer}." + (f"att.{name}" if attention else "ffn.x_k"), False
    matrix = _FLA_MATRIX.fullmatch(key)
    if matrix and matrix.group(2) in _FLA_PARTS:
        return f"blocks.{matrix.group(1)}.{_FLA_PARTS[matrix.group(2)]}.{matrix.group(3)}", False
    raise CheckpointError(
        f"{path} looks like an export for flash-linear-attention, but its {key} has no place in an "
        f"RWKV-7; of such exports only RWKV-7 with separate x_r, x_w, x_k, x_v, x_a, x_g can be "
        f"read. Give the .pth file it was converted from, or convert it back first"
    )
