"""WKV-5 as a plain token loop, that of WKV-6 with a constant decay: the ground truth."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import log_decay
from rwkv_train.ops.wkv6.reference import token_loop

refuses = serves_every_call


def run(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    *,
    with_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Returns outputs [B, T, H, N] and final state [B, H, N_value, N_key]; gradients by autograd.

    Shapes as in `rwkv_train.ops.wkv5.wkv5`; w, u and state in the compute dtype.
    """
    decay = torch.exp(log_decay(w))  # [H, N]
    y, final_state = token_loop(r, k, v, lambda _: decay[:, None, :], u, state, reset)
    return y, final_state if with_state else None
