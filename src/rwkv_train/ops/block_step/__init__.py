"""One token of a few sequences through a whole block; on a CPU and without gradients.

The formulas are those of `rwkv_train.models`, whose forward pass is the reference; here they are
C++ (`cuda/block_step`), one call a block. Between two products with matrices, which drive all else
out of the caches, an operator of torch takes longer to be found than to be computed. All between a
block's beginning and its end is in fp32, whatever the matrices are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops import matvec
from rwkv_train.ops.native import build


class BlockParameters(NamedTuple):
    """The parameters of a block in the order in which its formula reads them.

    vectors: fp32, contiguous.  matrices: [N, K], contiguous.  scales: [N] in fp32 for a matrix in
    int8, else without elements.  eps: of the two norms and of the norm of heads.
    """

    vectors: Sequence[Tensor]
    matrices: Sequence[Tensor]
    scales: Sequence[Tensor]
    eps: Sequence[float]


def is_served(version: str, x: Tensor) -> bool:
    """Tells whether the kernels serve a block of `version` for such x, [B, 1, C].

    The kernels that are missing have been spoken of by those who asked for them: they are in one
    library with those of `matvec`, and the recurrence's own is the one that prompts are read with.
    """
    return matvec.is_served_natively(x) and build.load(f"wkv{version}", "cpu") is None


def block_step(
    version: str,
    x: Tensor,
    carry: Tensor | None,
    state: Sequence[Tensor],
    parameters: BlockParameters,
) -> list[Tensor]:
    """Returns x behind the block, the tensors of its state, and RWKV-7's carry.

    x: [B, 1, C], any float dtype but fp64, with what the block before adds to it.
    carry: [B, 1, H, N] in fp32; None in the first block, and in all but RWKV-7's.
    state: in fp32; a layer's att_shift, wkv state or states, ffn_shift.
    """
    step = getattr(torch.ops.rwkv, f"rwkv{version}_block")
    found: list[Tensor] = step(x, carry, state, *parameters)
    return found
