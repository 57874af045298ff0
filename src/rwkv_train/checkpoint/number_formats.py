"""The dtype in which a precision named on the command line stores and multiplies."""

from __future__ import annotations

import torch

DTYPES = {
    "fp32": torch.float32,
    # a mode of the GPU's multiplication; the numbers themselves are fp32
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def precision_of(dtype: torch.dtype) -> str:
    """Returns the name of a number format on the command line, fp32 for one without."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
