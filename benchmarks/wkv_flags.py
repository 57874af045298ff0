"""Flags of the programs that time WKV operators: which of them, on tensors of what shape."""

from __future__ import annotations

import argparse

import torch

from benchmarks.wkv_cases import Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def case_parser(program: str, description: str | None, shape: Shape) -> argparse.ArgumentParser:
    """Returns a parser of the flags that say which operators are timed, on what.

    shape: unless the flags say otherwise.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.description = description
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ops", default="4567", help="versions, such as 67")
    parser.add_argument("--batch", type=positive, default=shape.batch)
    parser.add_argument("--time", type=positive, default=shape.time)
    parser.add_argument("--heads", type=positive, default=shape.heads)
    parser.add_argument("--size", type=positive, default=shape.size, help="channels per head")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", choices=devices, default=devices[-1])
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--threads", type=positive, help="CPU threads; default: torch's")
    return parser


def positive(text: str) -> int:
    """Returns the number, for argparse; raises when it is not above zero."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number above 0")
    return int(text)
