"""The difference between what a model says all at once and token by token.

Training reads in parallel, and what is trained is used recurrently.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rwkv_train.models.backbone import RWKV

# Largest relative difference by number format. Rounding alone makes about a hundredth of these in
# two layers and a seventh in twelve (measured over RWKV-4 to 7); it grows with the depth.
AGREEMENT_LIMITS = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}


@torch.no_grad()
def logit_difference(model: RWKV, tokens: Sequence[int]) -> float:
    """Returns how far the logits of one parallel pass are from those of single steps.

    The root mean square of the difference over that of the parallel ones, at every position of
    tokens [T], from the initial state.
    """
    row = torch.tensor([list(tokens)], device=model.emb.weight.device)
    parallel, state = model(row)[0].double(), None
    steps = []
    for position in range(row.shape[1]):
        logits, state = model(row[:, position : position + 1], state)
        steps.append(logits.double())
    recurrent = torch.cat(steps, 1)
    scale = parallel.square().mean().sqrt()
    difference = (recurrent - parallel).square().mean().sqrt()
    return float(difference / scale) if scale > 0 else float(difference)
