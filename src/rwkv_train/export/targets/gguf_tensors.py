"""The tensors of RWKV-6 and 7 in GGUF, as llama.cpp reads them, in both directions.

Low-rank matrices are stored transposed, vectors without axes of size 1, and the mixes of the time
mix in one tensor: for RWKV-6 in the order w, k, v, r, g, for RWKV-7 r, w, k, v, a, g.

Source: llama.cpp, src/llama-arch.cpp and src/models/rwkv6.cpp, rwkv7.cpp; gguf-py's constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_Form = Callable[[Tensor], Tensor]
_OURS = re.compile(r"blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"blk\.(\d+)\.(.+)")
_OUTER = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_NORMS = {
    f"{ours}.{part}": f"{theirs}.{part}"
    for ours, theirs in (("ln1", "attn_norm"), ("ln2", "attn_norm_2"), ("att.ln_x", "time_mix_ln"))
    for part in ("weight", "bias")
}
_MATRICES = {
    **{
        f"att.{name}.weight": f"time_mix_{name}.weight"
        for name in ("receptance", "key", "value", "output")
    },
    "ffn.key.weight": "channel_mix_key.weight",
    "ffn.value.weight": "channel_mix_value.weight",
}
# Key in a block -> name in GGUF, by the form in which it is stored.
_SAME = {
    "6": {
        **_NORMS,
        **_MATRICES,
        "att.time_faaaa": "time_mix_first.weight",
        "att.gate.weight": "time_mix_gate.weight",
        "ffn.receptance.weight": "channel_mix_receptance.weight",
    },
    "7": {**_NORMS, **_MATRICES},
}
_FLAT = {
    "6": {
        "att.time_maa_x": "time_mix_lerp_x.weight",
        "att.time_decay": "time_mix_decay.weight",
        "ffn.time_maa_k": "channel_mix_lerp_k.weight",
        "ffn.time_maa_r": "channel_mix_lerp_r.weight",
    },
    "7": {
        **{f"att.{n}": f"time_mix_{n}.weight" for n in ("w0", "a0", "v0", "k_k", "k_a", "r_k")},
        "ffn.x_k": "channel_mix_lerp_k.weight",
    },
}
_TURNED = {
    "6": {
        "att.time_maa_w1": "time_mix_w1.weight",
        "att.time_maa_w2": "time_mix_w2.weight",
        "att.time_decay_w1": "time_mix_decay_w1.weight",
        "att.time_decay_w2": "time_mix_decay_w2.weight",
    },
    "7": {
        f"att.{name}{half}": f"time_mix_{name}{half}.weight" for name in "wavg" for half in (1, 2)
    },
}
_MIXES = {
    "6": tuple(f"att.time_maa_{mix}" for mix in "wkvrg"),
    "7": tuple(f"att.x_{mix}" for mix in "rwkvag"),
}
_STACK = "time_mix_lerp_fused.weight"
# llama.cpp wants them, of the learning rate's rank, and never reads them.
_UNUSED = {f"blocks.0.att.v{number}": f"blocks.0.att.a{number}" for number in "012"}


def to_gguf(weights: Mapping[str, Tensor], version: str) -> dict[str, Tensor]:
    """Returns a checkpoint of RWKV-6 or 7 by GGUF's names, shapes in torch's order of axes.

    RWKV-7's unused v0, v1, v2 of layer 0 become copies of its a0, a1, a2. Raises KeyError for a
    tensor that has no place.
    """
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in _OUTER:
            found[_OUTER[key]] = value
            continue
        layer, name = _parts(_OURS, key)
        if name in _MIXES[version]:
            # Once for all of them.
            if name == _MIXES[version][0]:
                mixes = [weights[f"blocks.{layer}.{mix}"] for mix in _MIXES[version]]
                found[f"blk.{layer}.{_STACK}"] = torch.cat(mixes)[:, None]  # [5 or 6, 1, 1, D]
            continue
        stored = weights[_UNUSED[key]] if key in _UNUSED else value
        theirs, form = _to_theirs(version)[name]
        found[f"blk.{layer}.{theirs}"] = form(stored)
    return found


def from_gguf(tensors: Mapping[str, Tensor], version: str, head_size: int) -> dict[str, Tensor]:
    """Returns GGUF's tensors under checkpoint keys in RWKV-LM's shapes, the unused three left out.

    tensors: shapes in torch's order of axes.  Raises KeyError for a tensor that has no place.
    """
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    forms = _to_ours(version)
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in outer:
            found[outer[key]] = value
            continue
        layer, name = _parts(_THEIRS, key)
        if name == _STACK:
            rows = zip(_MIXES[version], value.flatten(1))
            found |= {f"blocks.{layer}.{mix}": _as_row(row) for mix, row in rows}
            continue
        ours, form = forms[name]
        found[f"blocks.{layer}.{ours}"] = form(value)
        if ours == "att.r_k":
            found[f"blocks.{layer}.{ours}"] = value.reshape(-1, head_size)
    return {key: value for key, value in found.items() if key not in _UNUSED}


def is_matrix(key: str, value: Tensor) -> bool:
    """Tells whether a tensor of a checkpoint may be stored in fewer bits than fp32.

    llama.cpp ends the process for mixes in fp16, and low-rank pairs are small and worth their bits.
    """
    return key.endswith(".weight") and value.dim() == 2


def matrix_name(key: str, version: str) -> str:
    """Returns GGUF's name of a matrix of a checkpoint."""
    if key in _OUTER:
        return _OUTER[key]
    layer, name = _parts(_OURS, key)
    return f"blk.{layer}.{_SAME[version][name]}"


def _to_theirs(version: str) -> dict[str, tuple[str, _Form]]:
    """Returns key in a block -> name in GGUF, and how the tensor is stored."""
    forms = ((_SAME, torch.Tensor.contiguous), (_FLAT, torch.Tensor.flatten), (_TURNED, _turned))
    return {
        ours: (theirs, form) for table, form in forms for ours, theirs in table[version].items()
    }


def _to_ours(version: str) -> dict[str, tuple[str, _Form]]:
    """Returns name in GGUF -> key in a block, and how the tensor is restored."""
    forms = ((_SAME, torch.Tensor.contiguous), (_FLAT, _as_row), (_TURNED, _turned))
    return {
        theirs: (ours, form) for table, form in forms for ours, theirs in table[version].items()
    }


def _parts(pattern: re.Pattern[str], key: str) -> tuple[str, str]:
    match = pattern.fullmatch(key)
    if match is None:
        raise KeyError(key)
    return match.group(1), match.group(2)


def _turned(value: Tensor) -> Tensor:
    return value.transpose(-1, -2).contiguous()


def _as_row(value: Tensor) -> Tensor:
    return value.reshape(1, 1, -1)
