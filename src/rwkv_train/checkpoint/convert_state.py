"""Makes a training state one file, or a folder of parts.

    python -m rwkv_train.checkpoint.convert_state SOURCE.state TARGET.state [--parts N]

Without --parts the target is one file, which takes the memory of the whole state; with it a folder
of N parts. The source is verified, and stays. Either resumes as the other does.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_train.command_line import OneLineParser, path_argument, program, status_of
from rwkv_train.errors import CheckpointError, ConfigError, short_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rwkv_train.checkpoint.state_parts import TensorRun


def convert_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog="python -m rwkv_train.checkpoint.convert_state",
        description="Makes a training state one file, or a folder of parts.",
    )
    p.add_argument("source", type=path_argument, help="training state, a file or a folder")
    p.add_argument("target", type=path_argument, help="state to write; nothing may be there")
    p.add_argument("--parts", type=int, help="write a folder of so many parts; default: one file")
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = convert_parser().parse_args(argv)
    return status_of(lambda: _convert(arguments), prints=False)


def _convert(a: argparse.Namespace) -> None:
    from rwkv_train.checkpoint.resume import load_state, save_state

    source, target = Path(a.source), Path(a.target)
    if os.path.lexists(target):
        raise ConfigError(f"{target} is there already; name a new state")
    if a.parts is not None and a.parts < 1:
        raise ConfigError(f"--parts {a.parts}: a folder has at least one part")
    if not source.exists():
        raise CheckpointError(f"{source} is not there; give a training state")
    state = load_state(source)
    if a.parts is not None:
        _write_folder(target, state, a.parts)
    else:
        whole = {key: dict(values) for key, values in state["moments"].items()}
        del state["format"]
        save_state(target, {**state, "weights": dict(state["weights"]), "moments": whole})
    print(f"wrote {target} from {source}", file=sys.stderr)


def _write_folder(target: Path, state: dict[str, Any], count: int) -> None:
    from rwkv_train.checkpoint.state_folder import complete_folder, list_parts
    from rwkv_train.checkpoint.state_parts import entry_name, write_part
    from rwkv_train.files import new_partial_folder, publish, remove

    plain = {key: state[key] for key in state if key not in ("weights", "moments")}
    own = {key: plain[key] for key in plain if key not in ("weights_digest", "written", "format")}
    try:
        partial = new_partial_folder(target)
        try:
            parts = [
                write_part(partial, number, _share(state, number, count), None if number else own)
                for number in range(count)
            ]
            list_parts(partial, count, [entry_name(("weights", name)) for name in state["weights"]])
            complete_folder(partial, parts, plain)
            publish(partial, target)
        finally:
            remove(partial)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {target}: {short_reason(error)}") from error


def _share(state: dict[str, Any], number: int, count: int) -> Iterator[TensorRun]:
    """Yields an equal share of the elements of every tensor."""
    from rwkv_train.checkpoint.lazy_tensors import shapes_of
    from rwkv_train.checkpoint.part_tensors import element_run
    from rwkv_train.checkpoint.state_parts import TensorRun

    groups: dict[tuple[str, ...], Any] = {("weights",): state["weights"]}
    groups |= {("moments", key): values for key, values in state["moments"].items()}
    for keys, tensors in groups.items():
        for name, shape in shapes_of(tensors).items():
            size = math.prod(shape)
            first, last = (size * place // count for place in (number, number + 1))
            if first < last:
                values = element_run(tensors, name, first, last).contiguous()
                yield TensorRun((*keys, name), shape, first, values)


if __name__ == "__main__":
    sys.exit(main())
