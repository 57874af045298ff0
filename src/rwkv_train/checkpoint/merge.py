"""Merges what was trained for a base model into it.

    python -m rwkv_train.checkpoint.merge BASE.pth ADAPTER.lora.safetensors OUT.pth
    python -m rwkv_train.checkpoint.merge BASE.pth STATES.pth OUT.pth

The second file is an adapter (ours, or a folder of peft's) or a file of trained initial states.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.command_line import OneLineParser, path_argument, program, status_of
from rwkv_train.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def merge_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog="python -m rwkv_train.checkpoint.merge",
        description="Merges an adapter, or trained initial states, into their base model.",
    )
    p.add_argument("base", type=path_argument, help="base model, .pth or .safetensors")
    p.add_argument(
        "change",
        type=path_argument,
        help="adapter (.safetensors, its .json next to it; or peft's folder), "
        "or a file of trained initial states",
    )
    p.add_argument(
        "out",
        type=path_argument,
        help="file to write; a name ending in .safetensors gives that format",
    )
    p.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the file written; auto: the base model's",
    )
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = merge_parser().parse_args(argv)
    return status_of(lambda: _merge(arguments), prints=False)


def _merge(a: argparse.Namespace) -> None:
    import torch

    from rwkv_train.checkpoint.adapter_files import load_adapter, merge_adapter
    from rwkv_train.checkpoint.number_formats import DTYPES
    from rwkv_train.checkpoint.weights import load_tensors, load_weights, save_weights

    out, change = Path(a.out), Path(a.change)
    # Before the models are read, so that gigabytes are not read in vain.
    if out.exists():
        raise CheckpointError(f"{out} exists already; remove it yourself or choose another name")
    if not out.parent.is_dir():
        raise CheckpointError(f"{out.parent} is no folder; create it or choose another name")
    base = load_weights(a.base)
    states = {} if change.is_dir() else _states_of(load_tensors(change))
    if states:
        expected = {name.split(".")[1] for name in base if name.startswith("blocks.")}
        if {name.split(".")[1] for name in states} != expected:
            raise CheckpointError(
                f"{change} holds states of {len(states)} layers, {a.base} has {len(expected)}; "
                f"give the base model that they were trained on"
            )
        merged = {**base, **states}
    else:
        merged = merge_adapter(base, load_adapter(change))
    stored = next((v.dtype for v in base.values() if v.is_floating_point()), torch.float32)
    dtype = stored if a.precision == "auto" else DTYPES[a.precision]
    save_weights(out, merged, dtype)
    print(f"wrote {out}: {a.base} with {a.change}, {str(dtype).removeprefix('torch.')}")


def _states_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `weights` if they are trained initial states and nothing else, {} otherwise."""
    only_states = all(name.endswith(".att.time_state") for name in weights)
    return weights if only_states else {}


if __name__ == "__main__":
    sys.exit(main())
