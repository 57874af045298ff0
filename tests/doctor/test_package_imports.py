"""Imports that fail are named with what they lack, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from rwkv_train.doctor import package_imports as module
from rwkv_train.doctor.check_table import CHECKS
from rwkv_train.doctor.package_imports import check_deepspeed, check_libraries, import_answers
from tests.doctor.planted import findings, only
from tests.test_missing_packages import forget

PIP = f"{sys.executable} -m pip install"


def failed(answers) -> tuple[str, str]:
    (found,) = findings(answers)
    assert found.level == "fault"
    return found.found, found.remedy


def test_a_missing_package_is_named(monkeypatch):
    forget(monkeypatch, "tqdm")
    found, remedy = failed(check_libraries(Path()))
    assert (found, remedy) == ("tqdm is not installed", f"{PIP} 'tqdm>=4.66'")


def test_a_broken_library_is_installed_anew(monkeypatch, tmp_path):
    (tmp_path / "planted_broken.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found, remedy = failed(import_answers("planted_broken", "torch"))
    assert "OSError: libcudart.so.13: cannot open" in found
    assert remedy == f"{PIP} --force-reinstall --no-deps torch==2.13.0"


def test_what_lacks_pkg_resources_needs_an_older_setuptools(monkeypatch, tmp_path):
    (tmp_path / "planted_old.py").write_text("import pkg_resources")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget(monkeypatch, "pkg_resources")
    found, remedy = failed(import_answers("planted_old", "pytorch-lightning"))
    assert "setuptools dropped in 81" in found
    assert remedy == f"{PIP} 'setuptools<81'"


def test_an_absent_deepspeed_is_no_fault(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = only(check_deepspeed)
    assert (found.level, found.remedy) == ("skip", f"{PIP} deepspeed==0.19.8")


def test_libraries_that_are_there_are_one_line():
    assert only(check_libraries).level == "ok"


def test_checks_of_libraries_are_made_in_children_with_a_limit():
    names = ("numpy", "torch", "lightning", "deepspeed", "libraries", "kernels", "training")
    limits = {check.name: check.limit_s for check in CHECKS}
    assert all(limits[name] for name in names)
