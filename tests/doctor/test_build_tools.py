"""A compiler or a ninja that is missing, wrong or does not work is named with its remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rwkv_train.compiler import find_cpp_path
from rwkv_train.doctor import build_tools as module
from rwkv_train.doctor.build_tools import check_compiler, check_ninja, check_nvcc, check_triton
from rwkv_train.doctor.findings import install_compiler
from rwkv_train.doctor.python_packages import TorchBuild
from tests.doctor.planted import fault_of, only, plant_program


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return folder


def test_no_compiler_is_a_fault_with_the_systems_command(programs):
    plant_program(programs, "apt-get", "")
    found = fault_of(check_compiler)
    assert "no C++ compiler" in found.found and "several times slower" in found.found
    assert found.remedy == "sudo apt-get install g++"


@pytest.mark.parametrize(
    ("manager", "command"), [("dnf", "sudo dnf install gcc-c++"), ("apk", "sudo apk add g++")]
)
def test_every_system_has_its_own_command(programs, manager, command):
    plant_program(programs, manager, "")
    assert install_compiler() == command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("exit 1", "--version failed"),
        ("[ $# = 1 ] && echo 'g++ 7.5.0' || { echo 'error: no -std=c++20' >&2; exit 1; }", "c++20"),
    ],
)
def test_a_compiler_that_does_not_compile_is_a_fault(programs, words, told):
    plant_program(programs, "c++", words)
    assert told in fault_of(check_compiler).found


def test_a_compiler_that_works_is_sound():
    try:
        find_cpp_path()
    except Exception as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    assert "C++20 and OpenMP work" in only(check_compiler).found


def test_no_ninja_is_a_fault(programs):
    found = fault_of(check_ninja)
    assert "ninja, which runs the compiler, is missing" in found.found
    assert found.remedy.endswith("-m pip install 'ninja>=1.11'")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("echo 'a window manager'", "is no ninja: it says 'a window manager'"),
        ("exit 127", "is no ninja"),
        ("echo 1.3.0", "too old"),
    ],
)
def test_a_wrong_ninja_is_a_fault(programs, words, told):
    plant_program(programs, "ninja", words)
    found = fault_of(check_ninja)
    assert told in found.found and "--force-reinstall" in found.remedy


def test_a_ninja_that_is_no_program_is_a_fault(programs):
    (programs / "ninja").write_bytes(b"\x7fELF nonsense")
    (programs / "ninja").chmod(0o755)
    assert "does not start" in fault_of(check_ninja).found


def test_a_ninja_that_works_is_sound():
    assert only(check_ninja).level == "ok"


def test_nothing_is_asked_of_nvcc_and_triton_where_torch_uses_no_card(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "torch_build", lambda: TorchBuild("2.13.0+cpu", None))
    assert only(check_nvcc).level == "skip" and only(check_triton).level == "skip"


def test_an_nvcc_for_another_cuda_is_a_fault(monkeypatch, programs):
    import torch

    plant_program(programs, "nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr("rwkv_train.ops.native.cuda_toolkit.USUAL_FOLDERS", ())
    found = fault_of(check_nvcc)
    assert "is for CUDA 11.8 while torch was built for CUDA 12.6" in found.found
    assert found.remedy.startswith("install the CUDA toolkit 12.6")
