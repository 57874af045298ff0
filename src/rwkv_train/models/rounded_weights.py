"""The weights of a block's matrix products in autocast's dtype, all with one launch.

Left to itself autocast rounds every matrix before its product, and widens its gradient behind it:
two launches a matrix, in a layer of RWKV-7 more than all that lies between its products. Copies and
gradients are the same bits here. A copy lives until its product's backward pass, or, where there
will be none, until its block has run; autocast would keep it until the whole pass is over.

A module names the parameters that nothing but products reads in `product_weights`: what a formula
reads as well must stay fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rwkv_train.models.residual import Residual
from rwkv_train.models.widening import converted
from rwkv_train.ops.backends.dispatch import autocast_dtype


def call_rounded(block: nn.Module, residual: Residual, *arguments: Any) -> Any:
    """Returns block(residual, *arguments), its products reading weights that are rounded already.

    Without autocast, and compiled, where a graph has its casts fused anyway, the block as it is.
    """
    dtype = autocast_dtype(residual.x)
    weights = {} if dtype is None or _is_compiled(block) else _product_weights(block)
    if dtype is None or not weights:
        return block(residual, *arguments)
    copies = dict(zip(weights, converted(list(weights.values()), dtype)))
    return functional_call(block, copies, (residual, *arguments), tie_weights=False)


def _is_compiled(block: nn.Module) -> bool:
    return torch.compiler.is_compiling() or block._compiled_call_impl is not None


def _product_weights(block: nn.Module) -> dict[str, Tensor]:
    """Returns the fp32 parameters of a block that products alone read, by their names in it."""
    named = (
        (f"{path}.{name}", getattr(module, name))
        for path, module in block.named_modules()
        for name in getattr(module, "product_weights", ())
    )
    return {name: weight for name, weight in named if weight.dtype == torch.float32}
