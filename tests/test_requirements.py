"""The lists of what is needed agree: pyproject.toml, requirements*.txt and requirements.lock."""

from __future__ import annotations

import re

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from check_requirements import is_satisfied, read_lines
from rwkv_train.requirement_lines import split_line
from tests.checkout import ROOT

# What run-tests.sh and a run may need; bitsandbytes, of `adam8bit`, is for GPUs.
INSTALLED_EXTRAS = ("deepspeed", "wandb", "plot", "data")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LOCK_COMMAND = re.compile(r"^#\s+uv pip compile .*--generate-hashes .*requirements-dev\.txt", re.M)


def section(text: str, name: str) -> str:
    """The text of one section of pyproject.toml; Python 3.10 has no reader of TOML."""
    return re.split(r"^\[", text.partition(f"[{name}]\n")[2], maxsplit=1, flags=re.M)[0]


def lists_of(text: str) -> dict[str, list[str]]:
    """Key -> the strings of its list, for every list of a section."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = re.findall(r'^([\w-]+) = \[((?:\s*"[^"]*",?)*)\s*\]', lines, re.M)
    return {key: re.findall(r'"([^"]*)"', body) for key, body in found}


def by_name(lines: list[str]) -> dict[str, str]:
    """Package -> its version conditions, of requirement lines."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements if not r.extras}


@pytest.fixture(scope="module")
def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def extras(pyproject: str) -> dict[str, list[str]]:
    return lists_of(section(pyproject, "project.optional-dependencies"))


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text(encoding="utf-8")


def pins(lock: str, python: str) -> dict[str, Version]:
    """Package -> its version in the lock, for a Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    found: dict[str, Version] = {}
    for name, version, marker in re.findall(r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\$", lock, re.M):
        if not marker or Marker(marker).evaluate(environment):
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = Version(version)
    return found


def test_a_requirement_line_is_a_package_with_conditions():
    assert split_line("numpy>=1.26,<3") == ("numpy", [(">=", "1.26"), ("<", "3")])
    assert split_line("torch") == ("torch", [])
    for line in ("numpy~=1.26", "numpy>=1; sys_platform == 'linux'", "-e ."):
        with pytest.raises(ValueError, match="is not a package with versions"):
            split_line(line)


def test_an_installed_package_is_compared_number_by_number():
    assert is_satisfied("pytest>=7.10") and is_satisfied("pytest")
    assert not is_satisfied("pytest>=1000") and not is_satisfied("pytest<7")
    assert not is_satisfied("no-such-package-of-ours")


def test_requirements_txt_is_the_package_with_the_extras_that_scripts_may_ask_for(
    pyproject: str, extras: dict[str, list[str]]
):
    package = lists_of(section(pyproject, "project"))["dependencies"]
    package = by_name(package + [line for name in INSTALLED_EXTRAS for line in extras[name]])
    scripts = by_name(read_lines(ROOT / "requirements.txt"))
    tests = by_name(read_lines(ROOT / "requirements-dev.txt"))
    torch = Requirement(f"torch{package.pop('torch')}").specifier
    assert torch.contains(scripts.pop("torch").removeprefix("=="))
    # Tests read .parquet; the programs of a demo do not.
    assert package.pop("pyarrow") == tests["pyarrow"]
    assert package == scripts


def test_the_extra_dev_is_what_the_tests_need(extras: dict[str, list[str]]):
    runs = by_name(read_lines(ROOT / "requirements.txt")).keys() | {"pyarrow"}
    tests = by_name(read_lines(ROOT / "requirements-dev.txt"))
    assert by_name(extras["dev"]) == {k: v for k, v in tests.items() if k not in runs}


def test_the_extra_all_names_every_other_extra(extras: dict[str, list[str]]):
    (line,) = extras["all"]
    # A compiler for one version of CUDA, which not every torch has, is asked for by name.
    assert Requirement(line).extras == extras.keys() - {"all", "dev", "cuda"}


def test_the_compiler_that_the_scripts_install_is_that_of_the_extra_cuda(
    extras: dict[str, list[str]],
):
    scripts = by_name(read_lines(ROOT / "requirements-cuda.txt"))
    assert scripts == by_name(extras["cuda"])
    assert {"nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm"} < scripts.keys()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_everything_the_tests_need(lock: str, python: str):
    pinned = pins(lock, python)
    for line in read_lines(ROOT / "requirements-dev.txt"):
        wanted = Requirement(line)
        version = pinned.get(canonicalize_name(wanted.name))
        fits = version is not None and wanted.specifier.contains(version)
        assert fits, f"{line}: the lock has {version}; renew it with the command in its head"


def test_every_pin_of_the_lock_has_hashes_and_names_no_place(lock: str):
    pinned = re.split(r"^(?=[\w.-]+==)", lock, flags=re.M)
    assert LOCK_COMMAND.search(pinned[0]), "the head of the lock tells the command that renews it"
    assert all("--hash=sha256:" in block for block in pinned[1:])
    assert "://" not in lock
    assert "+cpu" not in lock
