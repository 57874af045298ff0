"""The Dockerfile: its rules, its files, and its steps, run in a folder without Docker.

pip, apt and useradd are stand-ins that write down what they are given; bash, the set-up's script
and check_requirements.py are the real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkout import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
PLACE = "/opt/rwkv-train"
# Of a checkout, not of an image.
LEFT_OUT = {
    *(".ci", ".gitattributes", ".github", ".gitignore", ".pre-commit-config.yaml", ".dockerignore"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README_CN.md", "Dockerfile"),
    *("benchmarks", "docs", "tests", "run-tests.sh"),
}
STAND_IN = """#!/bin/bash
name=$(basename "$0")
case "$name $*" in
    "python -m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    python*"-m pip install"*)
        printf '%s ' "$@" >> "$TOLD"; echo >> "$TOLD"
        for word in "$@"; do [ -f "$word" ] && sed 's/^/    /' "$word" >> "$TOLD"; done; true ;;
    python*) exec {python} "$@" ;;
    *) printf '%s ' "$name" "$@" >> "$TOLD"; echo >> "$TOLD" ;;
esac
"""


class Step(NamedTuple):
    """An instruction and what stands behind it, continued lines joined."""

    name: str
    rest: str


def steps() -> list[Step]:
    """Returns the instructions in order."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [Step(name, " ".join(rest.split())) for name, _, rest in found]


def of(name: str) -> list[str]:
    return [step.rest for step in steps() if step.name == name]


def goes_in(path: str) -> bool:
    """Tells whether .dockerignore lets a path of the checkout into the build: the last line wins.

    A line that names a folder is about everything in it.
    """
    found = True
    for line in IGNORED:
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if line.startswith("**/") else above
        # An asterisk stands for no slash.
        if any(fnmatch(n, pattern) and n.count("/") == pattern.count("/") for n in names):
            found = line.startswith("!")
    return found


def test_only_known_instructions_stand_there_in_an_order_that_docker_takes():
    names = [step.name for step in steps()]
    known = {"ARG", "FROM", "SHELL", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert set(names) <= known
    assert names[:2] == ["ARG", "FROM"] and names.count("FROM") == 1
    assert names[-1] == "CMD" and names.count("CMD") == 1


def test_the_base_is_one_release_of_python_that_the_package_takes():
    assert of("FROM") == ["python:${PYTHON_RELEASE}-slim-bookworm"]
    (version,) = [rest.partition("=")[2] for rest in of("ARG") if rest.startswith("PYTHON")]
    assert tuple(map(int, version.split("."))) >= (3, 10)


def test_lists_of_packages_do_not_stay_in_a_layer_and_only_what_is_asked_for_is_installed():
    (apt,) = [run for run in of("RUN") if "apt-get" in run]
    assert "--no-install-recommends" in apt and "--yes" in apt
    assert apt.startswith("apt-get update &&") and apt.endswith("rm -rf /var/lib/apt/lists/*")
    (settings,) = [env for env in of("ENV") if "PIP" in env]
    assert "PIP_NO_CACHE_DIR=1" in settings


def test_nothing_runs_as_root_but_what_must():
    names = steps()
    at = next(n for n, step in enumerate(names) if step.name == "USER")
    assert [step.rest for step in names if step.name == "USER"] == ["rwkv"]
    root = [step.rest.split()[0] for step in names[:at] if step.name == "RUN"]
    assert root == ["apt-get", "useradd"]
    assert all("--chown=rwkv:rwkv" in copy for copy in of("COPY"))
    assert "sudo" not in TEXT


def test_no_secret_is_built_in_and_none_is_asked_for():
    words = " ".join([*of("ARG"), *of("ENV")])
    assert not re.search("key|token|password|secret", words, re.IGNORECASE)
    for secret in (".env", "key.txt", "data/my.bin", "out/rwkv-final.pth", ".git/config"):
        assert not goes_in(secret)
    assert not goes_in("src/rwkv_train/base.pth") and not goes_in("src/__pycache__/a.pyc")
    assert "ADD" not in [step.name for step in steps()]


def test_every_copied_file_exists_and_reaches_the_builder():
    for rest in of("COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        assert target == "." or target.startswith("./")
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source == "." or goes_in(source), source


def test_everything_at_the_top_is_taken_or_left_out_on_purpose():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout and git")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    top = {path.split("/")[0] for path in listed.splitlines()}
    assert {name for name in top if not goes_in(name)} == LEFT_OUT & top
    # What the package is built of.
    build = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for needed in re.findall(r'(?:readme = |license-files = \[)"([^"]+)"', build):
        assert goes_in(needed)
    assert goes_in("src/rwkv_train/py.typed") and goes_in("cuda/wkv7/wkv7_ops.cpp")


@pytest.mark.parametrize("run", of("RUN"))
def test_a_step_is_right_shell(run: str):
    done = subprocess.run(["bash", "-n", "-c", run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build(folder: Path, **arguments: str) -> tuple[int, str, str]:
    """Runs the steps in a folder; returns the status, what was installed, and the faults."""
    given = dict(rest.partition("=")[::2] for rest in of("ARG")) | arguments
    programs = folder / "programs"
    programs.mkdir()
    for name in ("python", "python3", "apt-get", "useradd", "rm", "install"):
        (programs / name).write_text(STAND_IN.format(python=sys.executable))
        (programs / name).chmod(0o755)
    place = folder / "image"
    place.mkdir()
    told = folder / "told"
    environment = {**os.environ, **given, "PATH": f"{programs}:{os.environ['PATH']}"}
    # Nothing of this checkout is found but what was copied.
    environment |= {"TOLD": str(told), "PYTHON": "python", "PYTHONPATH": ""}
    for step in steps():
        if step.name == "COPY":
            *sources, target = [word for word in step.rest.split() if not word.startswith("--")]
            for source in sources:
                if source != ".":
                    (place / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place / target)
        if step.name == "RUN":
            words = ["bash", "-euo", "pipefail", "-c", step.rest]
            done = subprocess.run(
                words, cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                return done.returncode, told.read_text(), done.stderr
    return 0, told.read_text(), ""


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_steps_install_what_the_variant_needs(tmp_path: Path, variant: str):
    status, told, fault = build(tmp_path, VARIANT=variant, CPU_WHEELS="https://mirror/cpu")
    assert status == 0, fault
    pinned = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    from_wheels = f"-m pip install --quiet --index-url https://mirror/cpu {pinned[0]} \n"
    assert (from_wheels in told) == (variant == "cpu")
    assert ("-r requirements-cuda.txt" in told) == (variant == "cuda")
    # By the set-up's script, into .venv, with the mark by which the demo knows it.
    assert "\n    pytorch-lightning==1.9.5\n" in told
    assert list((tmp_path / "image/.venv").glob("installed-*-requirements.txt"))
    assert told.count("--editable .[serve]") == 1
    assert "apt-get install --yes --no-install-recommends g++" in told


def test_another_variant_is_refused_before_anything_is_installed(tmp_path: Path):
    status, told, fault = build(tmp_path, VARIANT="rocm")
    assert status == 2
    assert "VARIANT is rocm; give cpu or cuda" in fault
    assert "pip" not in told


def test_extras_and_commands_exist():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = [rest.partition("=")[2] for rest in of("ARG") if rest.startswith("EXTRAS")]
    for name in extras.split(","):
        assert re.search(rf"^{name} = \[", project, re.MULTILINE)
    assert of("CMD") == ['["rwkv-train", "--help"]']
    assert f"WORKDIR {PLACE}" in TEXT and f"PATH={PLACE}/.venv/bin:" in TEXT


def test_the_page_names_every_argument():
    page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    for rest in of("ARG"):
        assert f"| `{rest.partition('=')[0]}` |" in page
