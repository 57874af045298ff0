"""RWKV-6 as flash-linear-attention computes it, in plain torch, from the folder it loads.

Written from the library's layers (rwkv6.py of its layers and models), whose kernels need a GPU:
names, order of the mixes and eps are the library's. With the loops below in place of its kernels
the library's own modules give the same logits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class FlaRwkv6:
    """Reads a folder; `logits` takes ids [T]."""

    def __init__(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        self.weights = {key: value.double() for key, value in tensors.items()}
        self.config = json.loads((folder / "config.json").read_text())
        self.used: set[str] = set()

    def get(self, key: str) -> Tensor:
        self.used.add(key)
        return self.weights[key]

    def logits(self, tokens: list[int]) -> Tensor:
        """[T, V] in fp64, after every token."""
        x = self.get("model.embeddings.weight")[tokens]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            if layer == 0:
                x = self.norm(x, at + "pre_norm.")
            x = x + self.attention(self.norm(x, at + "attn_norm."), at + "attn.")
            x = x + self.feed_forward(self.norm(x, at + "ffn_norm."), at + "ffn.")
        return self.norm(x, "model.norm.") @ self.get("lm_head.weight").T

    def norm(self, x: Tensor, at: str) -> Tensor:
        weight, bias = self.get(at + "weight"), self.get(at + "bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.config["norm_eps"])

    def linear(self, x: Tensor, at: str) -> Tensor:
        return x @ self.get(at + "weight").T

    def lora(self, x: Tensor, at: str) -> Tensor:
        inner = self.linear(x, at + "lora.0.").tanh()
        return self.linear(inner, at + "lora.2.") + self.get(at + "lora.2.bias")

    def attention(self, x: Tensor, at: str) -> Tensor:
        delta = shifted(x) - x
        mixed = self.linear(x + delta * self.get(at + "x_proj.0.mu"), at + "x_proj.0.linear.")
        ranks = mixed.tanh().view(len(x), 5, -1)
        up = self.get(at + "x_proj.2.weight").view(x.shape[-1], 5, -1)
        shares = torch.einsum("tnr,dnr->tnd", ranks, up) + self.get(at + "x_bias")
        r, w, k, v, g = (x + delta * share for share in shares.unbind(1))
        H = self.config["num_heads"]
        decay = (-self.lora(w, at + "w_proj.linear.").exp()).exp()
        r, k, v = (self.linear(z, f"{at}{n}_proj.linear.") for n, z in zip("rkv", (r, k, v)))
        r, k, v, decay = (z.view(len(x), H, -1) for z in (r, k, v, decay))
        y = wkv6(r, k, v, decay, self.get(at + "bonus")).flatten(1)
        weight, bias = self.get(at + "g_norm.weight"), self.get(at + "g_norm.bias")
        y = F.group_norm(y, H, weight, bias, self.config["norm_eps"])
        return self.linear(y * F.silu(self.linear(g, at + "g_proj.linear.")), at + "o_proj.")

    def feed_forward(self, x: Tensor, at: str) -> Tensor:
        delta = shifted(x) - x
        key = self.linear(x + delta * self.get(at + "key.mu"), at + "key.linear.")
        gate = self.linear(x + delta * self.get(at + "receptance.mu"), at + "receptance.linear.")
        return gate.sigmoid() * self.linear(key.relu().square(), at + "value.")


def shifted(x: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(x[:1]), x[:-1]))


def wkv6(r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """[T, H, N] each, bonus [H, N]; a loop over tokens."""
    state = torch.zeros(*k.shape[1:], v.shape[-1], dtype=k.dtype)
    rows = []
    for t in range(len(k)):
        outer = k[t][:, :, None] * v[t][:, None]
        rows.append(torch.einsum("hk,hkv->hv", r[t], state + bonus[..., None] * outer))
        state = state * decay[t][..., None] + outer
    return torch.stack(rows)
