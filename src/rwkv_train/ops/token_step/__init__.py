"""One token of a few sequences through all blocks of a model; on a CPU and without gradients.

The formulas are those of `rwkv_train.models`, whose forward pass is the reference; here they are
C++ (`cuda/token_step`), one call a token. Between two products with matrices, which drive all else
out of the caches, an operator of torch takes longer to be found than to be computed. From the
embedding to the last norm all is in fp32, whatever the matrices are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops import matvec
from rwkv_train.ops.native import build


class StepParameters(NamedTuple):
    """The parameters of all blocks in the order in which the formulas read them.

    vectors: fp32, contiguous.  matrices: [N, K], contiguous.  scales: [N] in fp32 for a matrix in
    int8, else without elements.  eps: of the norms.
    """

    vectors: Sequence[Tensor]
    matrices: Sequence[Tensor]
    scales: Sequence[Tensor]
    eps: Sequence[float]


def is_served(version: str, rows: Tensor) -> bool:
    """Tells whether the kernels serve a model of `version` with such rows, [B, C], between blocks.

    The kernels that are missing have been spoken of by those who asked for them: they are in one
    library with those of `matvec`, and the recurrence's own is the one that prompts are read with.
    """
    return matvec.is_served_natively(rows) and build.load(f"wkv{version}", "cpu") is None


def token_step(
    version: str,
    tokens: Tensor,
    embedding: Tensor,
    state: Sequence[Tensor],
    parameters: StepParameters,
) -> list[Tensor]:
    """Returns the head's input, [B, 1, C] in the embedding's dtype, and the state's tensors after.

    tokens: [B, 1].  embedding: [V, C], any float dtype but fp64.
    state: in fp32; block by block att_shift, wkv state or states, ffn_shift.
    """
    step = getattr(torch.ops.rwkv, f"rwkv{version}_step")
    found: list[Tensor] = step(tokens, embedding, state, *parameters)
    return found
