"""Matrix products of fp32 in full precision, whatever the program around has chosen.

A chain of transitions multiplies rounding errors as well: with products in TF32 a state comes out
1e-3 off, as much as the whole rounding of bf16 inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rwkv_train.ops.backends.dispatch import without_autocast

_HIGHEST = "highest"
_lock = threading.Lock()
# How many threads are inside, and what the first one found.
_inside: list[str] = []


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Lets products on `device` be neither TF32 nor bf16 nor under autocast.

    The setting is one for all threads: it is given back when the last one leaves.
    """
    with _lock:
        if not _inside:
            _inside.append(torch.get_float32_matmul_precision())
            if _inside[0] != _HIGHEST:
                torch.set_float32_matmul_precision(_HIGHEST)
        else:
            _inside.append(_HIGHEST)
    try:
        with without_autocast(device):
            yield
    finally:
        with _lock:
            found = _inside[0]
            _inside.pop()
            if not _inside and found != _HIGHEST:
                torch.set_float32_matmul_precision(found)
