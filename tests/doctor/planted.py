"""Plants what is broken: packages that say another version, programs that do not do their work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding


def findings(answers: Answers) -> list[Finding]:
    """Returns what a check has found, without the words that tell where it is."""
    return [said for said in answers if isinstance(said, Finding)]


def only(check: Callable[[Path], Answers], folder: Path = Path()) -> Finding:
    """Returns the one finding of a check."""
    (found,) = findings(check(folder))
    return found


def fault_of(check: Callable[[Path], Answers], folder: Path = Path(), level="fault") -> Finding:
    """Returns the one finding of that level, which has a remedy."""
    (found,) = [f for f in findings(check(folder)) if f.level == level]
    assert found.remedy
    return found


def plant_package(folder: Path, name: str, version: str, *lines: str) -> None:
    """Makes a package that its metadata only tell of."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (info / "METADATA").write_text("\n".join(head) + "\n")


def plant_program(folder: Path, name: str, words: str) -> Path:
    """Makes a program of the shell."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / name
    script.write_text(f"#!/bin/sh\n{words}\n")
    script.chmod(0o755)
    return script
