"""Writes the file by which ninja compiles sources and links them into a library."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.ops.native.toolchain import Compiler


def ninja_file(
    library: str, units: Sequence[Path], cpp: Compiler, nvcc: Compiler | None = None
) -> str:
    """Returns ninja's recipe for `library`, made of `units`: .cpp and, with nvcc, .cu files.

    Objects and library come to lie in the folder where ninja runs; the units' names are unique.
    """
    rules = [_rule("cpp", cpp)]
    if nvcc is not None:
        rules.append(_rule("cu", nvcc))
    link = shlex.join([cpp.path, "$in", *cpp.link_flags, "-o", "$out"])
    rules.append(f"rule link\n  command = {_unquoted(link)}\n")
    builds = [f"build {unit.name}.o: {unit.suffix[1:]} {_escaped(unit)}\n" for unit in units]
    builds.append(f"build {library}: link {' '.join(f'{unit.name}.o' for unit in units)}\n")
    return "".join(rules + builds)


def _rule(name: str, compiler: Compiler) -> str:
    command = shlex.join([compiler.path, *compiler.compile_flags, "-c", "$in", "-o", "$out"])
    return f"rule {name}\n  command = {_unquoted(command)}\n"


def _unquoted(command: str) -> str:
    """Removes the quotes that shlex puts around ninja's own variables."""
    return command.replace("'$in'", "$in").replace("'$out'", "$out")


def _escaped(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))
