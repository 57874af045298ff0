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
_SIZE = 256


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
    # Every sum on the way is a number of fp32.
    product = torch.full((_SIZE, _SIZE), more_than_one) @ torch.ones(_SIZE, _SIZE)
    return bool((product == _SIZE * more_than_one).all())


def _has_wide_vectors() -> bool:
    vendor, first = WIDE_VECTORS
    found, family = vendor_and_family()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and found == vendor and family >= first
