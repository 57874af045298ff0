"""Tells whether the running Python satisfies a requirements file; standard library only.

    python check_requirements.py requirements.txt               exit status 0 when it does
    python check_requirements.py --only torch requirements.txt  looks at that one package
    python check_requirements.py --to-install requirements.txt  prints what pip has to be given

The exact torch of the requirements is what gets installed where there is none; an installed one of
`TORCH_AT_LEAST` or newer is as good, because replacing it could lose a build made for the machine.
Every other line is given to pip even when it is satisfied, or pip might break one to serve another.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Works in a bare checkout: this copy's package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from rwkv_train.requirement_lines import satisfies, split_line

TORCH_AT_LEAST = [(">=", "2.11")]


def read_lines(path: Path) -> list[str]:
    """Returns the requirement lines of a file, with those it includes by -r."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            lines += read_lines(path.parent / line[3:].strip())
        elif line:
            lines.append(line)
    return lines


def is_satisfied(line: str) -> bool:
    """Tells whether the installed packages satisfy one requirement line."""
    name, conditions = split_line(line)
    try:
        installed = version(name)
    except PackageNotFoundError:
        return False
    return satisfies(installed, TORCH_AT_LEAST if is_torch(line) else conditions)


def main(argv: list[str]) -> int:
    """Runs what the module's docstring describes; returns the exit status."""
    only = argv[argv.index("--only") + 1] if "--only" in argv else None
    lines = read_lines(Path(argv[-1]))
    if "--to-install" in argv:
        print("\n".join(line for line in lines if not (is_torch(line) and is_satisfied(line))))
        return 0
    if only is not None:
        lines = [line for line in lines if split_line(line)[0] == only]
    return 0 if all(map(is_satisfied, lines)) else 1


def is_torch(line: str) -> bool:
    """Tells whether a requirement line is torch's own."""
    return split_line(line)[0] == "torch"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
