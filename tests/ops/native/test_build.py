"""Building native libraries: once per machine, and with a clear word when it cannot be done.

A toy operator without torch's headers stands in for the real ones; it compiles in a second.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rwkv_train.compiler import find_ninja
from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import dispatch
from rwkv_train.ops.backends.dispatch import Call, choose
from rwkv_train.ops.native import build, cuda_toolkit, custom_ops
from rwkv_train.ops.native.build import Target, built_library
from rwkv_train.ops.wkv6 import BACKENDS, native
from tests.checkout import ROOT
from tests.ops.native.toolkits import fake_nvcc
from tests.ops.native_cases import require_native


@pytest.fixture
def toy(tmp_path) -> Target:
    """An operator `toy` whose library exports answer() -> 42."""
    require_native("wkv6")
    folder = tmp_path / "sources" / "toy"
    folder.mkdir(parents=True)
    (tmp_path / "sources" / "common").mkdir()
    (tmp_path / "sources" / "common" / "number.h").write_text("#define NUMBER 42\n")
    (folder / "toy_ops.cpp").write_text(
        'extern "C" int number();\nextern "C" int answer() { return number(); }\n'
    )
    (folder / "toy_cpu.cpp").write_text(
        '#include "../common/number.h"\nextern "C" int number() { return NUMBER; }\n'
    )
    return Target("toy", "cpu", tmp_path / "sources", tmp_path / "cache")


def answer(library: Path) -> int:
    return ctypes.CDLL(str(library)).answer()


def start_process(target: Target, path: str | None = None) -> subprocess.Popen:
    """Another Python that builds the target, prints the library's name or its BackendError."""
    code = (
        "import sys; from pathlib import Path; from rwkv_train.errors import BackendError\n"
        "from rwkv_train.ops.native.build import Target, built_library\n"
        "op, device, sources, cache = sys.argv[1:]\n"
        "try: print(built_library(Target(op, device, Path(sources), Path(cache))))\n"
        "except BackendError as error: print('BackendError:', error)\n"
    )
    environment = os.environ | ({"PATH": path} if path is not None else {})
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, target[:4])],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_builds_once_and_takes_the_cached_library_after_that(toy, capsys):
    library = built_library(toy)
    assert answer(library) == 42
    assert capsys.readouterr().err.count("building the toy CPU kernel") == 1
    written = library.stat().st_mtime_ns
    assert built_library(toy) == library
    assert library.stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("changed", ["common/number.h", "toy/toy_cpu.cpp"])
def test_a_changed_source_gives_another_library(toy, changed):
    first = built_library(toy)
    file = toy.sources / changed
    file.write_text(file.read_text().replace("42", "43").replace("NUMBER; }", "NUMBER + 0; }"))
    assert built_library(toy) != first


def test_a_header_that_no_source_includes_changes_nothing(toy):
    first = built_library(toy)
    (toy.sources / "common" / "other.h").write_text("#define OTHER 1\n")
    assert built_library(toy) == first


def test_two_processes_at_once_build_once(toy):
    processes = [start_process(toy), start_process(toy)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in outputs}) == 1
    assert answer(Path(outputs[0][0].strip())) == 42
    assert sum(err.count("building the toy CPU kernel") for _, err in outputs) == 1


def test_the_lock_of_a_dead_process_is_removed_with_a_message(toy, capsys):
    library = built_library(toy)
    library.unlink()
    (library.parent / "lock").write_text("process 999999 on some-host")
    (library.parent / "work-999999").mkdir()
    assert answer(built_library(toy)) == 42
    said = capsys.readouterr().err
    assert "process 999999 on some-host died while it built the toy CPU kernel" in said
    assert not (library.parent / "work-999999").exists()
    assert (library.parent / "lock").read_text() == ""


def test_a_broken_source_shows_the_compilers_error_and_the_log(toy):
    (toy.sources / "toy" / "toy_cpu.cpp").write_text("int number() { return nonsense; }\n")
    with pytest.raises(BackendError) as error:
        built_library(toy)
    assert "nonsense" in str(error.value)
    log = next(toy.cache.glob("toy-cpu-*/build.log"))
    assert str(log) in str(error.value)
    assert "nonsense" in log.read_text()


def test_a_failed_compile_is_not_repeated_by_the_processes_of_a_run(toy, capsys):
    (toy.sources / "toy" / "toy_cpu.cpp").write_text("int number() { return nonsense; }\n")
    for _ in range(2):
        with pytest.raises(BackendError, match="nonsense"):
            built_library(toy)
    assert capsys.readouterr().err.count("building") == 1
    log = next(toy.cache.glob("toy-cpu-*/build.log"))
    long_ago = time.time() - 2 * build.FAILURE_LIFETIME_S
    os.utime(log, (long_ago, long_ago))
    with pytest.raises(BackendError, match="nonsense"):
        built_library(toy)
    assert capsys.readouterr().err.count("building") == 1


@pytest.fixture
def family(toy) -> Target:
    """A library of toy and a second operator, whose host code includes the same header."""
    shared = toy.sources / "common" / "shared.h"
    shared.write_text("#pragma once\ninline int shared() { return 1; }\n")
    for op in ("toy", "other"):
        (toy.sources / op).mkdir(exist_ok=True)
        host = toy.sources / op / f"{op}_ops.cpp"
        written = host.read_text() if host.exists() else 'extern "C" int more() { return 2; }\n'
        host.write_text(f'#include "../common/shared.h"\n{written}')
    (toy.sources / "other" / "other_cpu.cpp").write_text("namespace other { int unused = 3; }\n")
    return toy._replace(name="toys", members=("toy", "other"))


def test_a_family_is_one_library_whose_host_code_is_one_translation_unit(family, capsys):
    (family.sources / "other" / "other_ops.cpp").write_text(
        "int unheard_of() { return shared() + number(); }\n"
        'extern "C" int more() { return unheard_of(); }\n'
    )
    library = built_library(family)
    assert library.name == "toys_cpu.so"
    assert answer(library) == 42 and ctypes.CDLL(str(library)).more() == 43
    assert capsys.readouterr().err.startswith("building the toys CPU kernels, ")


@pytest.mark.parametrize("op", ["toy", "other"])
def test_a_changed_source_of_any_operator_gives_another_library(family, op):
    first = built_library(family)
    with (family.sources / op / f"{op}_ops.cpp").open("a") as file:
        file.write("// another version\n")
    assert built_library(family) != first


def test_a_member_without_sources_is_named(family):
    shutil.rmtree(family.sources / "other")
    with pytest.raises(BackendError, match=r"toys CPU kernels .* without .*/other_ops\.cpp"):
        built_library(family)


def test_the_operators_of_a_family_are_loaded_together(family, monkeypatch):
    loaded = []
    monkeypatch.setattr(build, "FAMILIES", {"toys": ("toy", "other")})
    monkeypatch.setattr(build, "SOURCES", family.sources)
    monkeypatch.setattr(build, "_outcomes", {})
    monkeypatch.setattr(build, "has_sources", lambda *_: True)
    monkeypatch.setattr(build, "built_library", lambda target: Path(target.name))
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert [build.load(op, "cpu") for op in ("other", "toy", "alone")] == [None] * 3
    assert loaded == ["toys", "alone"]


def test_every_operator_but_the_recurrences_is_in_one_family():
    members = [op for family in build.FAMILIES.values() for op in family]
    hosts = {path.parent.name for path in build.SOURCES.glob("*/*_ops.cpp")}
    alone = {op for op in hosts if op.startswith("wkv") and not op.endswith("_piece")}
    assert alone < hosts and sorted(members) == sorted(hosts - alone)
    # Training does not wait for the build of what decoding alone calls.
    assert set(build.FAMILIES["decoding"]) == {"matvec", "token_step"}
    assert {op for op in hosts if op.endswith("_piece")} == set(build.FAMILIES["pieces"])


def test_without_a_compiler_it_names_the_remedy(toy, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").symlink_to(find_ninja())
    out, _ = start_process(toy, path=str(tmp_path / "bin")).communicate(timeout=120)
    assert out.startswith("BackendError: no C++ compiler")
    assert "apt-get install g++" in out


def test_a_library_built_earlier_serves_without_a_compiler(toy, tmp_path):
    library = built_library(toy)
    (tmp_path / "bin").mkdir()
    out, _ = start_process(toy, path=str(tmp_path / "bin")).communicate(timeout=120)
    assert out.strip() == str(library)


def test_without_ninja_it_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BackendError, match="pip install ninja"):
        find_ninja()


def test_libraries_for_other_cards_lie_apart(toy, monkeypatch):
    target = toy._replace(device="cuda")
    labels = []
    for capabilities in ([(8, 0)], [(9, 0)], [(8, 6), (9, 0)]):
        monkeypatch.setattr(build, "_capabilities", lambda found=capabilities: found)
        labels.append(build._label(target))
    assert labels == ["toy-cuda-sm_80", "toy-cuda-sm_90", "toy-cuda-sm_86-sm_90"]


def test_two_different_cards_are_both_compiled_for(monkeypatch):
    cards = [(9, 0), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: cards[card])
    assert build._capabilities() == [(8, 6), (9, 0)]


def test_a_host_compiler_that_nvcc_refuses_is_told_with_the_remedy(toy, monkeypatch):
    """The compiler's words are those of nvcc 13.0 beside a newer g++."""
    (toy.sources / "toy" / "toy_cpu.cpp").write_text(
        "#error -- unsupported GNU version! gcc versions later than 15 are not supported!\n"
    )
    with pytest.raises(BackendError, match=r"NVCC_CCBIN=g\+\+-15") as error:
        built_library(toy)
    assert "install an older one" in str(error.value)


def test_nowhere_to_keep_libraries_is_a_reason_and_no_crash(toy, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr(build, "has_sources", lambda *_: True)
    assert "make one of them writable" in build._load("wkv6", "cpu")


def test_paths_with_spaces_and_dollars_are_built_in(toy, tmp_path):
    folder = tmp_path / "two words $HOME"
    shutil.copytree(toy.sources, folder / "sources")
    assert answer(built_library(Target("toy", "cpu", folder / "sources", folder / "cache"))) == 42


@pytest.fixture(params=["compiler", "nvcc", "CUDA version", "CUDA build of torch"])
def missing(request, monkeypatch, tmp_path) -> tuple[Call, str]:
    """A machine that lacks one thing and has built nothing yet; a call, and the remedy's words."""
    require_native("wkv6")
    device, remedy = "cuda", "install the CUDA toolkit 13.0"
    monkeypatch.setattr(custom_ops, "_refusals", {})
    monkeypatch.setattr(dispatch, "_announced", set())
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(build, "_outcomes", {("wkv6", "cpu"): None})
    monkeypatch.setattr(cuda_toolkit, "USUAL_FOLDERS", ())
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: SimpleNamespace(
            name="Made-up 9000", major=9, minor=0, shared_memory_per_block_optin=227 * 1024
        ),
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("c++", "sh"):
        (folder / tool).symlink_to(shutil.which(tool) or shutil.which("g++"))
    if request.param == "compiler":
        (folder / "c++").unlink()
        monkeypatch.setattr(build, "_outcomes", {})
        device, remedy = "cpu", "apt-get install g++"
    elif request.param == "CUDA version":
        fake_nvcc(folder, "12.4")
        remedy = "install the CUDA toolkit 13.0 and put its bin folder first on the PATH"
    elif request.param == "CUDA build of torch":
        monkeypatch.setattr(torch.version, "cuda", None)
        remedy = "install a CUDA build of torch"
    monkeypatch.setenv("PATH", str(folder))
    return a_call(device), remedy


def a_call(device: str) -> Call:
    """wkv6 in fp32 with heads that every kernel serves."""
    return Call(
        op="wkv6",
        device=torch.device(device),
        dtype=torch.float32,
        batch=1,
        time=1,
        heads=1,
        head_size=64,
        needs_grad=False,
        has_state=False,
        has_reset=False,
    )


def test_a_native_backend_asked_for_by_name_fails_with_the_remedy(missing):
    call, remedy = missing
    with pytest.raises(BackendError, match=re.escape(remedy)):
        choose(BACKENDS, "native", call)


def test_auto_goes_on_with_the_next_backend_and_says_so_once(missing, caplog):
    call, remedy = missing
    for _ in range(2):
        assert BACKENDS[choose(BACKENDS, "auto", call)].name == "chunked"
    (message,) = [record.getMessage() for record in caplog.records]
    assert remedy in message and "'chunked' serves instead" in message


def test_a_device_that_it_does_not_know_is_no_news():
    call = a_call("meta")
    refusal = native.refuses(call)
    assert refusal is not None
    assert not refusal.news
