"""RWKV-6 and 7 under the names of flash-linear-attention (fla) and rwkv7-hf, in both directions.

Low-rank pairs are stored transposed there, the vector that is added as the bias of the second
matrix. RWKV-6 has its five mixes in another order, in one tensor:

    blocks.3.att.w1            [D, R]      model.layers.3.attn.w_lora.lora.0.weight  [R, D]
    blocks.3.att.w0            [1, 1, D]   model.layers.3.attn.w_lora.lora.2.bias    [D]
    blocks.3.att.time_maa_{w,k,v,r,g}      model.layers.3.attn.x_bias         [5, D], r w k v g
    blocks.3.att.time_maa_w2   [5, R, D]   model.layers.3.attn.x_proj.2.weight       [D, 5 R]

Both libraries give the norm of the heads an eps of their own, and no setting parts it from that of
the other norms: 1e-5 for RWKV-6, N 1e-5 for RWKV-7, where RWKV has 6.4e-4. What is normed is linear
in the value, and GN(y; e) = GN(y / d; e / d^2): a value matrix divided by d makes them compute
RWKV. RWKV-7's bonus reads the value behind the norm, so r_k is multiplied by d.

Source: flash-linear-attention 0.6, models/rwkv6, models/rwkv7 and layers; rwkv7-hf 0.9.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.errors import CheckpointError

# The setting in config.json of our folders; other programs ignore it.
DIVISOR_KEY = "rwkv_value_divided_by"

_FLA = re.compile(r"layers\.\d+\.(attn|attn_norm|ffn_norm)\.")
_OURS = re.compile(r"blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"layers\.(\d+)\.(.+)")
_OUTER = {
    "emb.weight": "embeddings.weight",
    "ln_out.weight": "norm.weight",
    "ln_out.bias": "norm.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {
    f"{ours}.{part}": f"{theirs}.{part}"
    for ours, theirs in (
        ("ln0", "pre_norm"),
        ("ln1", "attn_norm"),
        ("ln2", "ffn_norm"),
        ("att.ln_x", "attn.g_norm"),
    )
    for part in ("weight", "bias")
}
# Key in a block -> theirs, by the form in which it is stored.
_RWKV7_SAME = {
    **_NORMS,
    **{f"att.x_{mix}": f"attn.x_{mix}" for mix in "rwkvag"},
    "att.r_k": "attn.r_k",
    "att.receptance.weight": "attn.r_proj.weight",
    "att.key.weight": "attn.k_proj.weight",
    "att.value.weight": "attn.v_proj.weight",
    "att.output.weight": "attn.o_proj.weight",
    "ffn.key.weight": "ffn.key.weight",
    "ffn.value.weight": "ffn.value.weight",
}
_RWKV7_FLAT = {
    "att.k_k": "attn.k_k",
    "att.k_a": "attn.k_a",
    "ffn.x_k": "ffn.x_k",
    **{f"att.{name}0": f"attn.{name}_lora.lora.2.bias" for name in "wav"},
}
_RWKV7_TURNED = {
    **{f"att.{name}1": f"attn.{name}_lora.lora.0.weight" for name in "wavg"},
    **{f"att.{name}2": f"attn.{name}_lora.lora.2.weight" for name in "wavg"},
}
_RWKV6_SAME = {
    **_NORMS,
    "att.time_faaaa": "attn.bonus",
    "att.receptance.weight": "attn.r_proj.linear.weight",
    "att.key.weight": "attn.k_proj.linear.weight",
    "att.value.weight": "attn.v_proj.linear.weight",
    "att.gate.weight": "attn.g_proj.linear.weight",
    "att.output.weight": "attn.o_proj.weight",
    "ffn.key.weight": "ffn.key.linear.weight",
    "ffn.receptance.weight": "ffn.receptance.linear.weight",
    "ffn.value.weight": "ffn.value.weight",
}
_RWKV6_FLAT = {
    "att.time_maa_x": "attn.x_proj.0.mu",
    "att.time_decay": "attn.w_proj.linear.lora.2.bias",
    "ffn.time_maa_k": "ffn.key.mu",
    "ffn.time_maa_r": "ffn.receptance.mu",
}
_RWKV6_TURNED = {
    "att.time_decay_w1": "attn.w_proj.linear.lora.0.weight",
    "att.time_decay_w2": "attn.w_proj.linear.lora.2.weight",
}
# Ours are w k v r g, in the rank-5 tensors too; theirs r w k v g.
_THEIR_MIXES = "rwkvg"
_TO_THEIRS, _TO_OURS = [3, 0, 1, 2, 4], [1, 2, 3, 0, 4]
_STACKED = {f"att.time_maa_{mix}" for mix in _THEIR_MIXES}
_UNUSED = {f"blocks.0.att.v{number}" for number in "012"}
_DOWN, _UP, _STACK = "attn.x_proj.0.linear.weight", "attn.x_proj.2.weight", "attn.x_bias"


def is_fla(keys: Collection[str]) -> bool:
    """Tells whether these are fla's names, without `model.` in front."""
    return any(_FLA.match(key) for key in keys)


def value_divisor(version: str, head_size: int) -> float:
    """Returns d, by which the value matrix is divided so that fla computes RWKV; 1: it does."""
    # The root of 6.4e-4 over their eps.
    return 8.0 if version == "6" else math.sqrt(64 / head_size)


def to_fla(weights: Mapping[str, Tensor], version: str, divisor: float) -> dict[str, Tensor]:
    """Returns a checkpoint of RWKV-6 or 7 under fla's names, layer 0's unused v0, v1, v2 left out.

    divisor: see `value_divisor`.
    """
    found: dict[str, Tensor] = {}
    for key, value in scaled(weights, version, 1 / divisor).items():
        match = _OURS.fullmatch(key)
        if key in _OUTER:
            prefix = "" if _OUTER[key].startswith("lm_head") else "model."
            found[prefix + _OUTER[key]] = value
        elif match is None:
            raise CheckpointError(f"{key} has no place in a folder of fla; leave it out")
        elif key not in _UNUSED:
            layer, name = match.groups()
            name, stored = _to_theirs(version, name, value)
            # A stack is written once, when the first of its parts comes.
            if name == _STACK:
                parts = [weights[f"blocks.{layer}.att.time_maa_{mix}"] for mix in _THEIR_MIXES]
                stored = torch.stack([part.flatten() for part in parts])
            found[f"model.layers.{layer}.{name}"] = stored.contiguous()
    return found


def from_fla(path: Path, entries: Mapping[str, Tensor], divisor: float | None) -> dict[str, Tensor]:
    """Returns fla's tensors under checkpoint keys, in the checkpoint's shapes.

    entries: without `model.` in front.  divisor: what config.json says of the value, None: nothing.
    RWKV-7's layer 0 gets the v0, v1, v2 that fla leaves out and RWKV-LM wants, as zeros. Raises
    CheckpointError for a tensor without an unambiguous place, and when the divisor must be known.
    """
    version = "6" if any(".attn.x_proj." in key for key in entries) else "7"
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    found: dict[str, Tensor] = {}
    for key, value in entries.items():
        match = _THEIRS.fullmatch(key)
        ours = {outer[key]: value} if key in outer else {}
        if match is not None:
            parts = _to_ours(version, match.group(2), value)
            ours = {f"blocks.{match.group(1)}.{name}": part for name, part in parts.items()}
        if not ours:
            raise CheckpointError(
                f"{path} looks like an export for flash-linear-attention, but its {key} has no "
                f"place in an RWKV-{version}; of such exports only RWKV-6, and RWKV-7 with "
                f"separate x_r, x_w, x_k, x_v, x_a, x_g can be read. Give the .pth file it was "
                f"converted from, or convert it back first"
            )
        found |= ours
    if version == "7":
        found = with_first_value_residual(found)
    known = _required_divisor(path, version, found) if divisor is None else divisor
    return found if known == 1 else scaled(found, version, known)


def with_first_value_residual(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns an RWKV-7 with the three tensors of layer 0 that are never used, zero if missing.

    A model of one layer, which does not tell their rank, is returned as it is.
    """
    found = dict(weights)
    for name in ("v0", "v1", "v2"):
        like = weights.get(f"blocks.1.att.{name}")
        if like is not None:
            found.setdefault(f"blocks.0.att.{name}", torch.zeros_like(like))
    return found


def scaled(weights: Mapping[str, Tensor], version: str, factor: float) -> dict[str, Tensor]:
    """Returns `weights` with every att.value times `factor` and, in RWKV-7, r_k divided by it."""
    if factor == 1:
        return dict(weights)
    changes = {"att.value.weight": factor} | ({"att.r_k": 1 / factor} if version == "7" else {})
    return {
        key: value * changes.get(".".join(key.split(".")[2:]), 1.0)
        if key.endswith(tuple(changes))
        else value
        for key, value in weights.items()
    }


def _to_theirs(version: str, name: str, value: Tensor) -> tuple[str, Tensor]:
    """Returns the name in a layer and what is stored there."""
    same, flat, turned = _tables(version)
    if name in same:
        return same[name], value
    if name in flat:
        return flat[name], value.flatten()
    if name in turned:
        return turned[name], value.t()
    if name == "att.time_maa_w1":
        parts = value.reshape(len(value), 5, -1)[:, _TO_THEIRS]  # [D, 5, R]
        return _DOWN, parts.flatten(1).t()
    if name == "att.time_maa_w2":
        return _UP, value[_TO_THEIRS].flatten(0, 1).t()
    if version == "6" and name in _STACKED:
        return _STACK, value
    raise CheckpointError(f"blocks.N.{name} has no place in a folder of fla; leave it out")


def _to_ours(version: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """Returns the tensors of a block that this one of a layer holds; {} when it has no place."""
    same, flat, turned = _tables(version)
    for table, form in ((same, _as_it_is), (flat, _as_row), (turned, _turned)):
        for ours, theirs in table.items():
            if theirs == name:
                return {ours: form(value)}
    if version == "7":
        return {}
    if name == _STACK:
        return {f"att.time_maa_{m}": _as_row(row) for m, row in zip(_THEIR_MIXES, value)}
    if name == _DOWN:
        return {"att.time_maa_w1": value.t().reshape(value.shape[1], 5, -1)[:, _TO_OURS].flatten(1)}
    if name == _UP:
        return {"att.time_maa_w2": value.t().reshape(5, -1, len(value))[_TO_OURS]}
    return {}


def _tables(version: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    if version == "6":
        return _RWKV6_SAME, _RWKV6_FLAT, _RWKV6_TURNED
    return _RWKV7_SAME, _RWKV7_FLAT, _RWKV7_TURNED


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _as_row(value: Tensor) -> Tensor:
    return value.reshape(1, 1, -1)


def _turned(value: Tensor) -> Tensor:
    return value.t().contiguous()


def _required_divisor(path: Path, version: str, weights: Mapping[str, Tensor]) -> float:
    """Returns 1 where fla's eps is RWKV's; raises CheckpointError where it must be said."""
    bonus = weights.get("blocks.0.att.time_faaaa" if version == "6" else "blocks.0.att.r_k")
    needed = value_divisor(version, 64 if bonus is None else bonus.shape[-1])
    if needed == 1:
        return 1
    raise CheckpointError(
        f"{path}: fla's norm of RWKV-{version}'s heads has another eps than RWKV's, and nothing "
        f'tells whether the values were divided for it; write "{DIVISOR_KEY}" into the config.json '
        f"of its folder: 1 when the folder was converted from RWKV's weights as they are, "
        f"{needed:.17g} when fla is to compute the same as RWKV or has trained it"
    )
