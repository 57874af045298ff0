"""The blocks of a model through torch.compile, which fuses what lies between the operators.

Embedding, head and loss stay as they are: their work is in operators of their own. Parameters keep
their names, so that checkpoints, optimizer and adapters do not notice. A block is compiled anew for
every kind of call: the first layer and the others, with a state or without, a piece of another
length. Shapes are never traced as variables: a resumed run would begin with fixed ones again and
round differently from the run that it continues.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rwkv_train.models.backbone import RWKV

# Kinds of calls for which a block may be compiled; torch's own limit of 8 is reached by pieces of
# two lengths with states and resets, and beyond it torch silently compiles no more.
MOST_KINDS = 64


def compile_blocks(model: RWKV, backend: str = "inductor") -> None:
    """Compiles every block of a model, each at its first call.

    backend: as torch.compile has them; tests take one that needs no C++ compiler.
    """
    # Imported by its first use, a second that only those wait for who compile.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MOST_KINDS
    # It would cut a block's graph at DDP's buckets, so that their reduction may overlap with the
    # backward pass: between blocks it does anyway.
    torch._dynamo.config.optimize_ddp = False
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)


def as_written(model: RWKV) -> AbstractContextManager[Any]:
    """Returns a context in which compiled blocks run uncompiled: for lengths that come rarely."""
    if all(block._compiled_call_impl is None for block in model.blocks):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
