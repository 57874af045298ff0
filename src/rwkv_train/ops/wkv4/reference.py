"""WKV-4 as a plain token loop: the ground truth for the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype, log_decay

refuses = serves_every_call

# The exponent of an empty sum: exp(EMPTY - anything) is 0 and twice it is still finite in fp32,
# whereas -inf - (-inf) would be NaN.
EMPTY = -1e38
# exp(20) = 4.9e8 dwarfs every finite difference of keys and is finite itself, so that the gradient
# of an overflowing w is 0 and not 0 times infinity.
WKV4_LARGEST_LOG_RATE = 20.0

# (aa, bb, pp)
Sums = tuple[Tensor, Tensor, Tensor]


def empty_state(like: Tensor, shape: tuple[int, ...]) -> Sums:
    """Returns (aa, bb, pp) of no token at all, each of `shape`, with device and dtype of `like`."""
    return like.new_zeros(shape), like.new_zeros(shape), like.new_full(shape, EMPTY)


def run(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Sums | None, reset: Tensor | None
) -> tuple[Tensor, Sums]:
    """Returns outputs [B, T, A] and final state (aa, bb, pp), each [B, A]; gradients by autograd.

    Shapes as in `rwkv_train.ops.wkv4.wkv4`; w, u and state in the compute dtype.
    """
    dtype = compute_dtype(v.dtype)
    kf, vf = k.to(dtype), v.to(dtype)
    step = log_decay(w, WKV4_LARGEST_LOG_RATE)
    batch, time, width = v.shape
    aa, bb, pp = empty_state(kf, (batch, width)) if state is None else state
    outputs = []
    for t in range(time):
        if reset is not None:
            start = reset[:, t, None]
            aa, bb = aa.masked_fill(start, 0), bb.masked_fill(start, 0)
            pp = pp.masked_fill(start, EMPTY)
        now = u + kf[:, t]
        # The maxima only scale numerator and denominator alike; detached, they are the constants
        # that the definition of the state's gradient takes them for.
        scale = torch.maximum(pp, now).detach()
        before, current = torch.exp(pp - scale), torch.exp(now - scale)
        outputs.append((before * aa + current * vf[:, t]) / (before * bb + current))
        scale = torch.maximum(pp + step, kf[:, t]).detach()
        kept, added = torch.exp(pp + step - scale), torch.exp(kf[:, t] - scale)
        aa, bb, pp = kept * aa + added * vf[:, t], kept * bb + added, scale
    return torch.stack(outputs, 1).to(v.dtype), (aa, bb, pp)
