"""Exports for Hugging Face load like the checkpoints they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkv_train.checkpoint.weights import load_weights, read_shapes
from rwkv_train.errors import CheckpointError
from rwkv_train.inference.loading import load_model
from rwkv_train.models.backbone import RWKV
from tests.models.tiny import random_tokens, tiny_model

CPU = torch.device("cpu")
# A block's keys here and there, written down from the libraries' model files.
RWKV4 = {
    "ln0.weight": "pre_ln.weight",
    "ln1.bias": "ln1.bias",
    "ln2.weight": "ln2.weight",
    "att.time_decay": "attention.time_decay",
    "att.time_first": "attention.time_first",
    "att.time_mix_k": "attention.time_mix_key",
    "att.time_mix_v": "attention.time_mix_value",
    "att.time_mix_r": "attention.time_mix_receptance",
    "att.key.weight": "attention.key.weight",
    "att.value.weight": "attention.value.weight",
    "att.output.weight": "attention.output.weight",
    "att.receptance.weight": "attention.receptance.weight",
    "ffn.time_mix_k": "feed_forward.time_mix_key",
    "ffn.time_mix_r": "feed_forward.time_mix_receptance",
    "ffn.key.weight": "feed_forward.key.weight",
    "ffn.value.weight": "feed_forward.value.weight",
    "ffn.receptance.weight": "feed_forward.receptance.weight",
}
RWKV7 = {
    "ln0.weight": "pre_norm.weight",
    "ln0.bias": "pre_norm.bias",
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "ffn_norm.weight",
    "ln2.bias": "ffn_norm.bias",
    "att.receptance.weight": "attn.r_proj.weight",
    "att.key.weight": "attn.k_proj.weight",
    "att.value.weight": "attn.v_proj.weight",
    "att.output.weight": "attn.o_proj.weight",
    "att.ln_x.weight": "attn.g_norm.weight",
    "att.ln_x.bias": "attn.g_norm.bias",
    **{f"att.{v}": f"attn.{v}" for v in ("k_k", "k_a", "r_k", *(f"x_{c}" for c in "rwkvag"))},
    **{f"att.{c}0": f"attn.{c}_lora.lora.2.bias" for c in "wav"},
    "ffn.x_k": "ffn.x_k",
    "ffn.key.weight": "ffn.key.weight",
    "ffn.value.weight": "ffn.value.weight",
}
PAIRS = {
    **{f"att.{c}1": f"attn.{c}_lora.lora.0.weight" for c in "wavg"},
    **{f"att.{c}2": f"attn.{c}_lora.lora.2.weight" for c in "wavg"},
}
OUTER4 = {
    "emb.weight": "rwkv.embeddings.weight",
    "ln_out.weight": "rwkv.ln_out.weight",
    "ln_out.bias": "rwkv.ln_out.bias",
    "head.weight": "head.weight",
}
OUTER7 = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}


def model_of(version: str) -> RWKV:
    """Heads of 64 channels: only for these do fla and RWKV-7 give their norm the same eps."""
    return tiny_model(version, **({"head_size": 64} if version == "7" else {}))


def exported(version: str) -> dict[str, torch.Tensor]:
    """A tiny model as the library of its version saves it."""
    outer, inner, blocks = (
        (OUTER4, RWKV4, "rwkv.blocks") if version == "4" else (OUTER7, RWKV7, "model.layers")
    )
    found = {}
    for name, value in model_of(version).state_dict().items():
        if name in outer:
            found[outer[name]] = value
            continue
        _, layer, rest = name.split(".", 2)
        if layer == "0" and rest in ("att.v0", "att.v1", "att.v2"):
            # the library's first layer has no value residual
            continue
        if rest in PAIRS:
            found[f"{blocks}.{layer}.{PAIRS[rest]}"] = value.T.contiguous()
            continue
        # the norms' other halves have the same names
        other = {"ln0.bias": "pre_ln.bias"} if version == "4" else {}
        key = inner.get(rest) or other.get(rest) or rest
        shape = (-1,) if version == "7" and rest in ("att.w0", "att.a0", "att.v0") else value.shape
        found[f"{blocks}.{layer}.{key}"] = value.reshape(shape)
    return found


@pytest.mark.parametrize("version", ["4", "7"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_an_export_computes_what_its_model_does(tmp_path: Path, version: str, ending: str):
    path = tmp_path / f"export{ending}"
    save_file(exported(version), path) if ending != ".pth" else torch.save(exported(version), path)
    shapes = {key: tuple(value.shape) for key, value in load_weights(path).items()}
    assert read_shapes(path) == shapes
    model = load_model(path, device=CPU, dtype=torch.float32)
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(model(tokens)[0], model_of(version)(tokens)[0])


def test_an_export_with_a_tensor_of_unknown_meaning_is_refused(tmp_path: Path):
    save_file(
        {**exported("7"), "model.layers.0.attn.x_x": torch.zeros(6, 64)},
        tmp_path / "old.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"layers\.0\.attn\.x_x has no place.*\.pth file"):
        load_weights(tmp_path / "old.safetensors")
