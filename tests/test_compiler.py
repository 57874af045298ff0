"""Plain libraries: compiled once, replaced when anything changes, refused with a reason."""

from __future__ import annotations

import ctypes
import os

import pytest

from rwkv_train import compiler
from rwkv_train.errors import BackendError

if os.name != "posix":
    pytest.skip("libraries are built on Linux and macOS only", allow_module_level=True)


@pytest.fixture
def source(tmp_path):
    """A library with one function."""
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def test_a_library_is_compiled_once_and_can_be_called(source, tmp_path, monkeypatch):
    library = compiler.plain_library(source, tmp_path)
    assert ctypes.CDLL(str(library)).answer() == 42

    def compile_again(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", compile_again)
    assert compiler.plain_library(source, tmp_path) == library
    assert {p.name for p in tmp_path.iterdir()} == {"answer.cpp", library.name}


def test_another_source_gives_another_library(source, tmp_path):
    first = compiler.plain_library(source, tmp_path)
    source.write_text('extern "C" int answer() { return 43; }\n')
    second = compiler.plain_library(source, tmp_path)
    assert first != second
    assert ctypes.CDLL(str(second)).answer() == 43


def test_a_source_that_does_not_compile_is_refused_with_the_line(source, tmp_path):
    source.write_text("int broken(\n")
    with pytest.raises(BackendError, match=r"answer\.cpp does not compile: .*answer\.cpp:1"):
        compiler.plain_library(source, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["answer.cpp"]


def test_without_a_compiler_the_remedy_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"no C\+\+ compiler .* install one"):
        compiler.plain_library(source, tmp_path)


def test_a_cache_that_cannot_be_written_is_a_reason_and_no_crash(source, tmp_path):
    with pytest.raises(BackendError, match=r"answer\.cpp (cannot be compiled|does not compile)"):
        compiler.plain_library(source, tmp_path / "nowhere")
