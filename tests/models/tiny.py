"""Small models with non-trivial weights, for all tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.checkpoint.weights import fit_weights
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model, config_from_shapes
from tests.helpers import load_arrays

VERSIONS = ("4", "5", "6", "7")
MATRIX_VERSIONS = ("5", "6", "7")
# No two of a version are equal, so that no transposed or swapped pair goes unnoticed.
UNEQUAL_RANKS: dict[str, dict[str, int]] = {
    "4": {},
    "5": {},
    "6": {"rank_mix": 24, "rank_decay": 40},
    "7": {"rank_decay": 24, "rank_iclr": 40, "rank_value": 16, "rank_gate": 56},
}


def tiny_config(version: str, **sizes) -> ResolvedModel:
    """Two layers of width 64, two heads of 32 where there are heads, 50 tokens."""
    heads = {} if version == "4" else {"head_size": 32}
    return complete_model(
        ModelConfig(
            rwkv_version=version, **{"n_layer": 2, "n_embd": 64, "vocab_size": 50, **heads, **sizes}
        )
    )


def tiny_model(version: str, *, seed: int = 0, options: dict | None = None, **sizes) -> RWKV:
    """A model of `tiny_config` whose weights are the initial ones plus noise: none is trivial."""
    model = build_model(tiny_config(version, **sizes), **(options or {}))
    initialize(model, seed=seed, lr_init=1e-2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            is_matrix = parameter.dim() > 1 and min(parameter.shape[-2:]) > 2
            parameter += noise * (parameter.shape[-1] ** -0.5 if is_matrix else 0.2)
    return model.eval()


def random_tokens(batch: int, time: int, *, vocab_size: int = 50, seed: int = 1) -> Tensor:
    """[B, T] token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, time), generator=generator)


def golden_model(version: str, dtype: torch.dtype, **options) -> tuple[RWKV, dict[str, Tensor]]:
    """The model of the version's golden vectors, and all the arrays as tensors."""
    arrays = {
        key: torch.from_numpy(value)
        for key, value in load_arrays(f"rwkv{version}_tiny").items()
        if key != "config"
    }
    weights = {
        key.removeprefix("param/"): value
        for key, value in arrays.items()
        if key.startswith("param/")
    }
    config = complete_model(config_from_shapes({key: tuple(w.shape) for key, w in weights.items()}))
    model = build_model(config, **options)
    if model.train_states:
        weights |= {
            key.removeprefix("state/"): value
            for key, value in arrays.items()
            if key.endswith("time_state") and key.startswith("state/")
        }
    fitted, _ = fit_weights(model.state_dict(), weights, partial=False)
    model.load_state_dict(fitted)
    return model.to(dtype).eval(), arrays
