"""Packages that are missing, too new, or made for another torch are named with pip's command."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rwkv_train.doctor import python_packages as module
from rwkv_train.doctor.python_packages import (
    check_pairs,
    check_python,
    check_requirements,
    requirement_lines,
    torch_build,
)
from tests.checkout import ROOT
from tests.doctor.planted import fault_of, findings, only, plant_package


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose packages come before those that are installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_environment_that_has_all_is_sound():
    assert [f.level for f in findings(check_requirements(Path())) if f.level == "fault"] == []
    assert only(check_python).level == "ok"


def test_setuptools_81_is_named_with_the_reason(packages):
    plant_package(packages, "setuptools", "82.0.1")
    found = fault_of(check_requirements)
    assert "setuptools is 82.0.1" in found.found and "pkg_resources" in found.found
    assert found.remedy == f"{sys.executable} -m pip install 'setuptools<81'"


def test_a_numpy_that_is_too_new_is_named(packages):
    plant_package(packages, "numpy", "3.0.0")
    found = fault_of(check_requirements)
    assert "numpy is 3.0.0, and numpy>=1.26,<3 is needed" in found.found
    assert found.remedy.endswith("-m pip install 'numpy>=1.26,<3'")


def test_an_old_torch_is_named_with_the_release_that_was_tried(packages):
    plant_package(packages, "torch", "2.4.1")
    assert fault_of(check_requirements).remedy.endswith("pip install torch==2.13.0")


def test_another_deepspeed_is_a_warning(packages):
    plant_package(packages, "deepspeed", "0.14.0")
    found = fault_of(check_requirements, level="warn")
    assert "deepspeed==0.19.8 is needed" in found.found


def forget_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes packages ones that are not installed."""
    known = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(module.metadata, "version", version)


def test_a_missing_package_is_named(monkeypatch):
    forget_packages(monkeypatch, "tyro", "wandb")
    found = fault_of(check_requirements)
    assert found.found == "tyro is not installed, and tyro>=0.9 is needed"
    assert found.remedy.endswith("pip install 'tyro>=0.9'")


def test_many_missing_packages_are_one_fault_with_one_command(monkeypatch):
    forget_packages(monkeypatch, "tyro", "torch", "numpy", "orjson")
    found = fault_of(check_requirements)
    assert found.found.startswith("4 of 12 packages are not installed: torch, numpy, orjson, tyro")
    assert found.remedy.endswith(f"pip install -r {ROOT / 'requirements.txt'}")


def test_what_an_interrupted_installation_leaves_counts_as_missing(monkeypatch):
    monkeypatch.setattr(module.metadata, "version", lambda name: None)
    assert "12 of 12 packages" in fault_of(check_requirements).found


def test_a_torchvision_for_another_torch_is_named(packages):
    plant_package(packages, "torchvision", "0.19.0", "Requires-Dist: torch (==2.4.0)")
    found = fault_of(check_pairs, level="warn")
    assert "torchvision 0.19.0 was made for torch 2.4.0" in found.found


def test_a_torch_that_is_newer_than_what_was_tried_is_named(monkeypatch):
    monkeypatch.setattr(module, "torch_build", lambda: module.TorchBuild("2.99.0", None))
    assert "newer than 2.13.0" in fault_of(check_pairs, level="warn").found


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert "3.10 or newer is needed" in fault_of(check_python).found


def test_the_build_of_torch_is_read_from_its_files():
    import torch

    assert torch_build() == (torch.__version__, torch.version.cuda)


def test_the_release_that_was_tried_is_that_of_the_requirements():
    text = (ROOT / "requirements.txt").read_text()
    assert re.search(r"^torch==(\S+)$", text, re.M)[1] == module.TORCH_TRIED


def test_an_installed_package_tells_the_same_requirements_as_the_checkout(monkeypatch, tmp_path):
    checkout = requirement_lines()
    plain = [f"{line}" for line in checkout[""]]
    extras = [f'{line} ; extra == "deepspeed"' for line in checkout["deepspeed"]]
    told = [*plain, *extras, 'rwkv-train[deepspeed] ; extra == "all"']
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module.metadata, "requires", lambda name: told)
    assert requirement_lines() == {"": checkout[""], "deepspeed": ["deepspeed==0.19.8"]}
    assert len(checkout[""]) == 12
