"""What the documents say is there is there, and nothing is in the repository that should not be.

The tree of folders stands in the README's fenced block that has a line for `src/rwkv_train/`. A
line is names, two spaces or more, and a description; deeper lines are inside the folder above them.
Names are separated by commas, or by ` ... ` when those between are meant too. A description may
continue with `other.py: ...` about a file of the same folder. docs/architecture.md lists the rooms.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import ROOT

PACKAGE = "src/rwkv_train/"
LARGEST = 1 << 20
# Documents whose paths and names lead a reader through the code.
GUIDES = ("docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md")
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
        if any(re.match(r"src/rwkv_train/(\s{2}|$)", line) for line in lines):
            return lines
    raise AssertionError("README.md has no fenced block with a line for src/rwkv_train/")


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
        "```sh\nsrc/rwkv_train/ is not here\n```\n```\n"
        "train.py, make.py   trains; one.py: converts for two.py\n"
        "src/rwkv_train/\n"
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
        "src/rwkv_train/",
        "src/rwkv_train/ops/",
        "src/rwkv_train/ops/wkv4/",
        "src/rwkv_train/ops/wkv7/",
        "src/rwkv_train/data/",
        "src/rwkv_train/data/a.py",
        "src/rwkv_train/data/b.py",
        "docs/flags.md",
    ]


def test_everything_in_the_tree_exists_and_is_what_it_looks_like(tree: list[str]):
    missing = [
        path
        for path in tree
        if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert not missing
    assert len(tree) > 40


def test_everything_at_the_top_is_in_the_tree(tree: list[str]):
    top = {path.split("/")[0] for path in tracked_files()} - {
        "README.md",
        ".gitignore",
        ".gitattributes",
    }
    named = {path.split("/")[0] for path in tree}
    assert not top - named


def test_every_layer_is_in_the_tree_and_every_room_in_the_architecture(tree: list[str]):
    parts = [path.split("/")[2:-1] for path in tracked_files() if path.startswith(PACKAGE)]
    layers = {f"{PACKAGE}{folders[0]}/" for folders in parts if folders}
    assert not layers - set(tree)
    rooms = {"/".join(folders[:2]) for folders in parts if len(folders) > 1}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+)` \|", text, re.MULTILINE))
    assert {room for room in listed if "/" in room} == rooms


def wrong_words(text: str) -> list[str]:
    """Returns the words in backticks that lead nowhere, with their lines.

    A word with a slash is a path from the top or from the package. A word behind a path on the same
    line is a file next to it, or a name that the file must hold: `a/b.py`: `name`.
    """
    wrong = []
    for line in text.splitlines():
        at: Path | None = None
        for word in re.findall(r"`([a-z_.][^`\s]*)`", line):
            folders = [ROOT, ROOT / PACKAGE]
            if at is not None and "/" not in word:
                folders = [at if at.is_dir() else at.parent, ROOT]
            found = next((f / word for f in folders if (f / word).exists()), None)
            is_path = re.fullmatch(r"[\w./]+/[\w.]*", word)
            if found is not None:
                at = found
            elif is_path or (at is not None and not is_named(word, at)):
                wrong.append(f"{word}: {line}")
    return wrong


def is_named(word: str, path: Path) -> bool:
    """Tells whether a file holds the last part of a dotted name; other words count as held."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", word) or not path.is_file():
        return True
    name = re.escape(word.rpartition(".")[2])
    return re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")) is not None


def test_wrong_words_are_found_and_right_ones_are_not():
    right = (
        "`tests/helpers.py`: `relative_rms`; `conftest.py`; `train.py` `--flag` `GET/it`\n"
        "`ops/native/`, `build.py`: `load`, `docs/`\n"
    )
    assert wrong_words(right) == []
    line = "`ops/nothing.py`, `ops/native/build.py`: `no_such_name`, `nothing.py`"
    assert [fault.split(":")[0] for fault in wrong_words(line)] == [
        "ops/nothing.py",
        "no_such_name",
        "nothing.py",
    ]


@pytest.mark.parametrize("document", GUIDES)
def test_paths_and_names_that_guides_give_are_right(document: str):
    wrong = wrong_words((ROOT / document).read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


def test_paths_that_the_readme_gives_for_a_readers_questions_are_right():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| where is")[2].partition("\n\n")[0]
    assert table.count("\n") >= 5
    assert not wrong_words(table)


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
