"""Models and rows in which every mistake of ranks that share a row would show."""

from __future__ import annotations

import torch

from rwkv_train.config.schema import AdapterConfig
from rwkv_train.models.adapters import attach_adapters, learns
from rwkv_train.models.backbone import RWKV
from tests.models.thread_ranks import Row
from tests.models.tiny import random_tokens, tiny_model

T = 50
EXACT = 1e-11
# Two, three and four ranks, pieces of one token among them.
CUTS = {2: (0, 23, T), 3: (0, 5, 6, T), 4: (0, 13, 26, 39, T)}


def spread_model(version: str, trained: str = "all", **options) -> RWKV:
    """Three layers of width 32 that remember: with fast decays no rank would miss another's state.

    trained: as `--train_type`.
    """
    options = {"wkv_backend": "chunked", "train_states": trained == "states", **options}
    heads = {} if version == "4" else {"head_size": 16}
    model = tiny_model(version, options=options, n_layer=3, n_embd=32, **heads)
    if trained == "lora":
        attach_adapters(model, AdapterConfig(lora_r=4), ("att", "ffn"), seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("time_decay", "att.w0")):
                parameter.sub_(5)
            if name.endswith("lora_B"):
                # At zero the other half would have no gradient.
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=_generator(4)))
            parameter.requires_grad_(parameter.requires_grad and learns(name, trained))
    return model.double()


def rows(resets: bool = False, batch: int = 2) -> Row:
    """Rows with weights; resets: at a border, two in a piece, and none in another row."""
    tokens = random_tokens(batch, T + 1)
    mask = torch.rand(batch, T, generator=_generator(5)).double()
    # A whole piece that counts nothing is no reason to stay away from an exchange.
    mask[:, 5:6] = 0
    reset = None
    if resets:
        reset = torch.zeros(batch, T, dtype=torch.bool)
        reset[0, [13, 23, 30, 33]] = True
    return Row(tokens[:, :-1], tokens[:, 1:], mask, reset)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
