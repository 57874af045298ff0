"""Which code it is, read from the files of git without git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rwkv_train.version import code_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "3.1"\n')
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return tmp_path


def test_it_names_version_and_commit(root: Path):
    (root / ".git" / "refs" / "heads" / "main").write_text(COMMIT + "\n")
    assert code_version(root) == "3.1 (commit 0123456789ab)"


def test_it_finds_a_packed_branch_and_a_detached_head(root: Path):
    (root / ".git" / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    assert code_version(root) == "3.1 (commit 0123456789ab)"
    (root / ".git" / "HEAD").write_text("f" * 40 + "\n")
    assert code_version(root) == "3.1 (commit ffffffffffff)"


def test_it_does_without_a_checkout(root: Path):
    shutil.rmtree(root / ".git")
    assert code_version(root) == "3.1"
    (root / "pyproject.toml").unlink()
    assert code_version(root) == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("place", ["checkout", "worktree"])
def test_it_agrees_with_git(tmp_path: Path, place: str):
    folder = tmp_path / "checkout"
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", str(tmp_path / "worktree")], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert code_version(tmp_path / place) == f"unknown (commit {commit.stdout[:12]})"
