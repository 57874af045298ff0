"""Checks of Python and of the packages that a run imports."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rwkv_train.doctor.findings import Answers, Finding, fault, good, pip_install, skipped, warning
from rwkv_train.requirement_lines import satisfies, split_line, version_numbers
from rwkv_train.version import DISTRIBUTION, ROOT

OLDEST_PYTHON = (3, 10)
# The release that requirements.txt installs, with which all the rest was tried.
TORCH_TRIED = "2.13.0"
# More missing packages than these are installed together.
FEW_MISSING = 2
# Why a version is asked for, where that is not only that it was tried.
REASONS = {
    "setuptools": "Lightning 1.9.5 imports pkg_resources, which setuptools dropped in 81",
    "pytorch-lightning": "the trainer is written for the interface of this release",
    "torch": "older ones lack functions that the trainer calls",
    "deepspeed": "the trainer is written for the interface of this release",
}
# Extras whose packages are told when they are absent; the others are for those who know them.
_EXTRAS = ("deepspeed", "wandb", "plot", "data", "serve", "eval", "adam8bit", "export")
# Packages that are made for one release of torch, and crash or are refused beside another.
_MADE_FOR_TORCH = ("torchvision", "torchaudio")


class TorchBuild(NamedTuple):
    """The torch that is installed, as its files tell without importing it; cuda: None for CPUs."""

    version: str
    cuda: str | None


def torch_build() -> TorchBuild | None:
    """Returns which torch is installed, None where there is none."""
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return TorchBuild(installed_version("torch") or "unknown", None)
    told = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*= *'([^']*)'", text, re.M))
    return TorchBuild(told.get("__version__", "unknown"), told.get("cuda"))


def check_python(folder: Path) -> Answers:
    """Yields the version and kind of Python."""
    version, path = platform.python_version(), sys.executable
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        yield fault(
            f"{version} at {path}, and {oldest} or newer is needed",
            f"install Python {oldest} or newer, then: PYTHON=/path/to/python3 ./run-tests.sh",
        )
    elif sys.maxsize < 2**32:
        yield fault(
            f"{version} at {path} is a 32-bit program, for which there is no torch",
            "install a 64-bit Python",
        )
    else:
        yield good(f"{version} at {path}")


def check_requirements(folder: Path) -> Answers:
    """Yields a fault for every package that is missing or of a wrong version."""
    lines = requirement_lines()
    needed = lines.pop("", [])
    missing = missing_packages()
    if len(missing) > FEW_MISSING:
        yield fault(
            f"{len(missing)} of {len(needed)} packages are not installed: {', '.join(missing)}",
            remedy_for(missing[0]),
        )
    faults = [found for line in needed if (found := _about(line, needed=True)) is not None]
    yield from faults
    for extra in _EXTRAS:
        for line in lines.get(extra, []):
            found = _about(line, needed=False)
            if found is not None:
                yield found
    absent = [
        extra
        for extra in _EXTRAS
        if any(installed_version(split_line(line)[0]) is None for line in lines.get(extra, []))
    ]
    left = f"; extras not installed: {', '.join(absent)}" if absent else ""
    if not faults and not missing:
        yield good(f"{len(needed)} packages are there as required{left}")


def requirement_lines() -> dict[str, list[str]]:
    """Returns the requirement lines of the trainer by extra, "" for those that all need.

    Of the checkout whose code this is, else of the installed package.
    """
    found: dict[str, list[str]] = {}
    project = ROOT / "pyproject.toml"
    if project.is_file():
        text = project.read_text(encoding="utf-8")
        text = text.partition("[project]")[2].partition("[project.scripts]")[0]
        for name, body in re.findall(r"^(\w+) = \[(.*?)\]$", text, re.M | re.S):
            key = "" if name == "dependencies" else name
            # A line with a bracket repeats other extras.
            found[key] = [line for line in re.findall(r'"([^"]+)"', body) if "[" not in line]
        return found
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        required = []
    for line in required:
        requirement, _, marker = line.partition(";")
        extra = re.search(r'extra == ["\'](\w+)', marker)
        if "[" not in requirement:
            found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return found


def missing_packages() -> list[str]:
    """Returns the packages that all runs need and that are not installed."""
    names = [split_line(line)[0] for line in requirement_lines().get("", [])]
    return [name for name in names if installed_version(name) is None]


def remedy_for(package: str, *, force: bool = False) -> str:
    """Returns the command that installs a package as needed, or all where more than a few lack.

    force: over what is there, which is broken.
    """
    if len(missing_packages()) > FEW_MISSING:
        listed = ROOT / "requirements.txt"
        return pip_install(*(("-r", str(listed)) if listed.is_file() else (DISTRIBUTION,)))
    every = [line for lines in requirement_lines().values() for line in lines]
    lines = {split_line(line)[0]: line for line in reversed(every)}
    wanted = f"torch=={TORCH_TRIED}" if package == "torch" else lines.get(package, package)
    return pip_install(wanted, force=force)


def check_pairs(folder: Path) -> Answers:
    """Yields packages that were made for another torch than the one that is there."""
    build, wrong = torch_build(), False
    if build is None:
        yield skipped("there is no torch")
        return
    for name in _MADE_FOR_TORCH:
        wanted = _pinned(name, "torch")
        if wanted is None or version_numbers(wanted) == version_numbers(build.version):
            continue
        wrong = True
        yield warning(
            f"{name} {installed_version(name)} was made for torch {wanted}, and torch is "
            f"{build.version}: whatever imports it may crash",
            f"{sys.executable} -m pip uninstall {name}",
        )
    if version_numbers(build.version) > version_numbers(TORCH_TRIED):
        wrong = True
        yield warning(
            f"torch {build.version} is newer than {TORCH_TRIED}, with which all was tried",
            pip_install(f"torch=={TORCH_TRIED}"),
        )
    if not wrong:
        yield good(f"nothing that is known to break beside torch {build.version}")


def _about(line: str, *, needed: bool) -> Finding | None:
    """Returns what is wrong with the installed package of a line, None: nothing that is told."""
    name, conditions = split_line(line)
    version = installed_version(name)
    if version is None:
        if not needed or len(missing_packages()) > FEW_MISSING:
            # An extra's, or told with the others.
            return None
        return fault(f"{name} is not installed, and {line} is needed", remedy_for(name))
    if satisfies(version, conditions):
        return None
    reason = f": {REASONS[name]}" if name in REASONS else ""
    report = fault if needed else warning
    return report(f"{name} is {version}, and {line} is needed{reason}", remedy_for(name))


def installed_version(package: str) -> str | None:
    """Returns a package's version as its files tell; None where it is not installed, or broken."""
    try:
        # Of an installation that was interrupted there is a folder without a version.
        found: str | None = metadata.version(package)
    except (metadata.PackageNotFoundError, KeyError, TypeError):
        return None
    return found or None


def _pinned(package: str, of: str) -> str | None:
    """Returns the one version of another package that an installed one is made for."""
    for line in _requires(package):
        found = re.match(rf"{of}\s*\(?==\s*([\w.]+)", line)
        if found:
            return found[1]
    return None


def _requires(package: str) -> Iterator[str] | Sequence[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
