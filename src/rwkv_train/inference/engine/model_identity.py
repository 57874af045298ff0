"""A digest that tells a model from others, whatever number format it was loaded in."""

from __future__ import annotations

import torch

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.models.backbone import RWKV

# Values of a tensor that are looked at: a training step, a merged adapter, change nearly all.
_VALUES = 4096


@torch.no_grad()
def model_identity(model: RWKV) -> str:
    """Returns a digest of the model's names, shapes and values, in hex; takes milliseconds.

    Of large tensors some thousand values are looked at, spread evenly, all as bf16: a file has the
    same identity as fp32 and as bf16. Trained initial states do not count: they are where a text
    begins, and a state goes on behind that.
    """
    looked_at = {}
    for name, value in model.state_dict().items():
        if not name.endswith(".time_state"):
            flat = value.reshape(-1)
            step = max(1, len(flat) // _VALUES)
            looked_at[name] = [list(value.shape), flat[::step].to(torch.bfloat16)]
    return content_digest(looked_at)
