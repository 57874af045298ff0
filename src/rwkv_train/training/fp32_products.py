"""Chooses the library that multiplies fp32 matrices on a CPU, by the processor and no clock.

torch asks MKL by itself, which on AMD's processors computes with vectors of 256 bits. From family
26 (Zen 5) on these have 512, and oneDNN uses them: exact fp32 at more than twice the speed
(benchmarks/RESULTS.md). torch takes oneDNN for fp32 in its precision "medium", whose name allows
bf16: on a processor with matrix units it would be that, so exactness is proven by a product.
What is learnt may depend on the library by roundings, so nothing is timed here: a run resumes as
it began.
"""

from __future__ import annotations

import torch

from rwkv_train.processors import vendor_and_family

# The vendor, and the first of its families with vector units of 512 bits.
WIDE_VECTORS = ("AuthenticAMD", 26)
# Rows, sums, columns: a library chooses its kernel by the shape.
_SHAPES = ((256, 256, 256), (2048, 192, 672), (192, 2048, 192), (7, 256, 4096), (1, 512, 65))


def choose_fp32_products() -> str | None:
    """Sets who multiplies fp32 matrices in this process; tells people, if it is not torch's choice.

    Once, before the first step.
    """
    torch.set_float32_matmul_precision("highest")
    if not _has_wide_vectors():
        return None
    torch.set_float32_matmul_precision("medium")
    if products_are_exact():
        return "fp32 by oneDNN, exact: torch's own choice uses half of this processor's vectors"
    torch.set_float32_matmul_precision("highest")
    return "fp32 as torch takes them: oneDNN would round here"


def products_are_exact() -> bool:
    """Tells whether fp32 products keep what the 11 bits of tf32, or the 8 of bf16, would lose."""
    more_than_one = 1 + 2.0**-12
    for rows, sums, columns in _SHAPES:
        left, right = torch.full((rows, sums), more_than_one), torch.ones(sums, columns)
        # Stored by columns too, as a linear layer and its gradients have them. Every sum on the
        # way is a number of fp32.
        for product in (left @ right, left @ _by_columns(right), _by_columns(left) @ right):
            if not bool((product == sums * more_than_one).all()):
                return False
    return True


def _by_columns(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.t().contiguous().t()


def _has_wide_vectors() -> bool:
    vendor, first = WIDE_VECTORS
    found, family = vendor_and_family()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and found == vendor and family >= first
