"""Pieces by the project's own kernels; so far by calls of the operators' native ones."""

from __future__ import annotations

from typing import Any

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.pieces import operator_calls

refuses = serves_every_call


def run(form: str, *arguments: Any, kernel: str = "") -> Any:
    """Returns the results of a form of `rwkv_train.ops.pieces.reference`."""
    return operator_calls.run(f"native:{kernel}" if kernel else "native", form, *arguments)
