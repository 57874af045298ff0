"""What the README says is there is there, and nothing is in the repository that should not be.

The file tree stands in the README's fenced block that has a line for `src/`. A line is names, two
spaces or more, and a description; deeper lines are inside the folder above them. Names are
separated by commas, or by ` ... ` when those between are meant too. A description may go on with
`other.py: ...` about a file beside the line's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 1 << 20
# Put together here, so that this file does not hold them itself.
MACHINE_PATHS = [f"/{name}/".encode() for name in ("work", "root")]


def tracked_files() -> list[str]:
    """Paths of the files in the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know which files belong to the repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    # A file deleted but not yet committed is still listed.
    return [path for path in listed.split("\0") if path and (ROOT / path).exists()]


def tree_block(text: str) -> list[str]:
    """Lines of the fenced block that shows the file tree."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = block.splitlines()
        if any(re.match(r"src/(\s{2}|$)", line) for line in lines):
            return lines
    raise AssertionError("README.md has no fenced block with a line for src/")


def paths_in_tree(lines: list[str]) -> list[str]:
    """Every path the tree names, folders with a slash at the end."""
    found: list[str] = []
    # (indentation, folder) of the folders around the current line
    around: list[tuple[int, str]] = [(-1, "")]
    for line in filter(str.strip, lines):
        indentation = len(line) - len(line.lstrip())
        names, _, description = line.strip().partition("  ")
        while around[-1][0] >= indentation:
            around.pop()
        folder = around[-1][1]
        named = re.split(r", | \.\.\. ", names)
        found += [folder + name for name in named]
        found += [folder + name for name in re.findall(r"\b(\w+\.py):", description)]
        if named[0].endswith("/"):
            around.append((indentation, folder + named[0]))
    return found


@pytest.fixture(scope="module")
def tree() -> list[str]:
    """The paths of the README's file tree."""
    return paths_in_tree(tree_block((ROOT / "README.md").read_text(encoding="utf-8")))


def test_the_tree_is_read_as_people_read_it():
    text = (
        "```sh\nsrc/ is not here\n```\n```\n"
        "train.py, make.py   trains; one.py: converts for two.py\n"
        "src/\n"
        "  ops/              operators\n"
        "    wkv4/ ... wkv7/   one folder each\n"
        "  data/             text\n"
        "    a.py            stage; b.py: the next\n"
        "docs/flags.md       flags\n```\n"
    )
    assert paths_in_tree(tree_block(text)) == [
        "train.py",
        "make.py",
        "one.py",
        "src/",
        "src/ops/",
        "src/ops/wkv4/",
        "src/ops/wkv7/",
        "src/data/",
        "src/data/a.py",
        "src/data/b.py",
        "docs/flags.md",
    ]


def test_everything_in_the_tree_exists_and_is_what_it_looks_like(tree: list[str]):
    missing = [
        path
        for path in tree
        if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert not missing
    assert len(tree) > 50


def test_everything_at_the_top_is_in_the_tree(tree: list[str]):
    top = {path.split("/")[0] for path in tracked_files()} - {"README.md", ".gitignore"}
    named = {path.split("/")[0] for path in tree}
    assert not top - named


def test_every_package_of_src_is_in_the_tree(tree: list[str]):
    packages = {
        "/".join(path.split("/")[:2])
        for path in tracked_files()
        if path.startswith("src/") and path != "src/__init__.py"
    }
    named = {"/".join(path.rstrip("/").split("/")[:2]) for path in tree}
    assert not packages - named


def test_links_of_the_documents_lead_somewhere():
    broken = []
    for name in tracked_files():
        if name.endswith(".md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
                if "://" not in target and not ((ROOT / name).parent / target).exists():
                    broken.append(f"{name}: {target}")
    assert not broken


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    found = [
        name
        for name in tracked_files()
        if any(path in (ROOT / name).read_bytes() for path in MACHINE_PATHS)
    ]
    assert not found


def test_no_file_is_larger_than_a_megabyte():
    large = [name for name in tracked_files() if (ROOT / name).stat().st_size > LARGEST]
    assert not large
