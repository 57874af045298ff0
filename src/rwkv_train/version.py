"""Names this code: the version of the project and, in a checkout, the commit of git."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "rwkv-train"
ROOT = Path(__file__).resolve().parents[2]
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def code_version(root: Path = ROOT) -> str:
    """Returns "0.1.0 (commit 0123abcd4567)", without the bracket where there is no checkout.

    Reads pyproject.toml and the files of git, and the metadata of the installed package where
    there is no pyproject.toml; what cannot be read is omitted.
    """
    version = _checkout_version(root)
    if version is None and root == ROOT:
        version = _installed_version()
    commit = _commit(root)
    return (version or "unknown") + (f" (commit {commit[:12]})" if commit else "")


def _checkout_version(root: Path) -> str | None:
    found = re.search(r'^version = "([^"]+)"', _text(root / "pyproject.toml"), re.MULTILINE)
    return found.group(1) if found else None


def _installed_version() -> str | None:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    folder = root / ".git"
    if folder.is_file():
        # A worktree names its folder in a file; branches are in the folder that it shares.
        folder = (root / _text(folder).partition("gitdir:")[2].strip()).resolve()
    head = _text(folder / "HEAD").strip()
    if not head.startswith("ref: "):
        return head if _COMMIT.fullmatch(head) else None
    branch = head.removeprefix("ref: ")
    shared = (folder / _text(folder / "commondir").strip()).resolve()
    for place in (folder, shared):
        commit = _text(place / branch).strip()
        if _COMMIT.fullmatch(commit):
            return commit
    packed = re.search(
        rf"^([0-9a-f]{{40,64}}) {re.escape(branch)}$", _text(shared / "packed-refs"), re.MULTILINE
    )
    return packed.group(1) if packed else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
