"""Finding a CUDA compiler: wrappers, links, wheels, several of them, and halves of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rwkv_train import compiler
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import cuda_toolkit, toolchain
from rwkv_train.ops.native.cuda_toolkit import architecture_flags, find_toolkit
from tests.ops.native.toolkits import fake_nvcc, fake_toolkit

SHELL = "/usr/bin:/bin"


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A machine without any nvcc; a folder for made-up ones."""
    monkeypatch.setattr(cuda_toolkit, "USUAL_FOLDERS", ())
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", SHELL)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    if shutil.which("nvcc") is not None:
        pytest.skip("needs /usr/bin without nvcc")
    return tmp_path


def flags_of(top: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a toolkit at `top` is used with."""
    return ("-isystem", str(top / "include")), (f"-L{top / 'lib'}", "-lcudart")


def test_a_wrapper_script_leads_to_the_toolkit_behind_it(bare, monkeypatch):
    real = fake_toolkit(bare / "cuda 13", "13.0")
    wrapper = bare / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{SHELL}")
    found = find_toolkit("13.0")
    assert found.nvcc == str(wrapper)
    assert (found.include_flags, found.link_flags) == flags_of(bare / "cuda 13")


def test_a_link_to_nvcc_is_followed_where_its_parts_lie(bare, monkeypatch):
    real = fake_toolkit(bare / "cuda", "13.0")
    (real.parent / "nvcc.profile").touch()
    (bare / "bin").mkdir()
    (bare / "bin" / "nvcc").symlink_to(real)
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:{SHELL}")
    assert find_toolkit("13.0").nvcc == str(real)


def test_a_link_of_a_wrapper_to_another_program_is_kept(bare, monkeypatch):
    """Programs such as ccache tell by the name that they are nvcc."""
    other = fake_toolkit(bare / "cuda", "13.0").rename(bare / "cuda" / "bin" / "ccache")
    (bare / "bin").mkdir()
    (bare / "bin" / "nvcc").symlink_to(other)
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:{SHELL}")
    assert find_toolkit("13.0").nvcc == str(bare / "bin" / "nvcc")


def test_pips_wheels_are_found_and_linked_by_the_librarys_full_name(bare):
    top = bare / "site-packages" / "nvidia" / "cu13"
    nvcc = fake_toolkit(top, "13.0", library="lib/libcudart.so.13")
    found = find_toolkit("13.0")
    assert found.nvcc == str(nvcc)
    assert found.link_flags == (f"-L{top / 'lib'}", "-l:libcudart.so.13")


VERSION = "Cuda compilation tools, release 13.0, V13.0.88"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("printf '\\351\\351 rubbish'", "an unknown version"),
        ("exec sleep 5", "does not answer within 0 s"),
        (f"[ $1 = --version ] && echo '{VERSION}' || {{ printf '\\351' >&2; exit 1; }}", "start"),
        (
            f"""[ $1 = --version ] && echo '{VERSION}' || echo '#$ INCLUDES="-I/x y' >&2""",
            "without quotation marks",
        ),
    ],
)
def test_an_nvcc_that_answers_rubbish_is_passed_over(bare, monkeypatch, words, told):
    broken = bare / "broken" / "nvcc"
    broken.parent.mkdir()
    broken.write_text(f"#!/bin/sh\n{words}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(cuda_toolkit, "QUESTION_S", 0.4)
    monkeypatch.setattr(compiler, "QUESTION_S", 0.4)
    monkeypatch.setenv("PATH", f"{broken.parent}:{SHELL}")
    with pytest.raises(BackendError, match=told):
        find_toolkit("13.0")


def test_one_of_another_version_is_passed_over(bare, monkeypatch):
    fake_toolkit(bare / "old", "12.4")
    fake_toolkit(bare / "new", "13.1")
    monkeypatch.setenv("PATH", f"{bare / 'old/bin'}:{bare / 'new/bin'}:{SHELL}")
    assert find_toolkit("13.0").nvcc == str(bare / "new" / "bin" / "nvcc")
    assert find_toolkit("12.6").nvcc == str(bare / "old" / "bin" / "nvcc")


def test_the_users_own_choice_comes_first(bare, monkeypatch):
    fake_toolkit(bare / "path", "13.0")
    fake_toolkit(bare / "home", "13.0")
    monkeypatch.setenv("PATH", f"{bare / 'path/bin'}:{SHELL}")
    monkeypatch.setenv("CUDA_HOME", str(bare / "home"))
    assert find_toolkit("13.0").nvcc == str(bare / "home" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(bare / "nowhere"))
    assert find_toolkit("13.0").nvcc == str(bare / "path" / "bin" / "nvcc")


def refused(needed: str = "13.0") -> str:
    with pytest.raises(BackendError) as error:
        find_toolkit(needed)
    return str(error.value)


def test_without_a_fitting_one_every_reason_and_the_remedy_are_told(bare, monkeypatch):
    assert 'pip install "nvidia-cuda-nvcc==13.0.*"' in refused()
    assert "pip" not in refused("12.6")
    fake_nvcc(bare / "old", "12.4")
    monkeypatch.setenv("PATH", f"{bare / 'old'}:{SHELL}")
    monkeypatch.setenv("CUDA_HOME", str(bare / "nowhere"))
    told = refused()
    assert re.search(r"nvcc is for CUDA 12\.4 while torch was built for CUDA 13\.0", told)
    assert f"CUDA_HOME={bare / 'nowhere'} has no bin/nvcc" in told
    assert "install the CUDA toolkit 13.0" in told


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        ("include/crt/host_defines.h", "comes without headers"),
        ("include/cuda_runtime_api.h", "comes without headers"),
        ("lib/libcudart.so", "comes without the runtime library"),
    ],
)
def test_half_a_toolkit_is_told_by_what_it_lacks(bare, monkeypatch, missing, word):
    fake_toolkit(bare / "half", "13.0")
    (bare / "half" / missing).unlink()
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_HEADERS", ())
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_LIBRARIES", ())
    monkeypatch.setenv("PATH", f"{bare / 'half/bin'}:{SHELL}")
    assert word in refused()
    fake_toolkit(bare / "whole", "13.0")
    monkeypatch.setenv("PATH", f"{bare / 'half/bin'}:{bare / 'whole/bin'}:{SHELL}")
    assert find_toolkit("13.0").nvcc == str(bare / "whole" / "bin" / "nvcc")


def test_headers_of_the_system_need_no_flag(bare, monkeypatch):
    fake_toolkit(bare / "usr", "13.0")
    nvcc = fake_nvcc(bare / "debian" / "bin", "13.0", "TOP=" + str(bare / "debian"))
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_HEADERS", (bare / "usr" / "include",))
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_LIBRARIES", (bare / "usr" / "lib",))
    monkeypatch.setenv("PATH", f"{nvcc.parent}:{SHELL}")
    assert find_toolkit("13.0").include_flags == ()


def test_one_that_does_not_start_is_a_reason(bare, monkeypatch):
    script = fake_nvcc(bare / "bin", "13.0")
    script.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{script.parent}:{SHELL}")
    assert "broken" in refused()
    script.write_text("not a program")
    assert "nvcc" in refused()


def test_another_host_compiler_makes_another_library(bare, monkeypatch):
    """The choice reaches nvcc by NVCC_CCBIN, which only its dry run shows."""
    top = bare / "cuda"
    fake_toolkit(top, "13.0")
    told = set()
    for host in ("gcc", "g++-12"):
        fake_nvcc(top / "bin", "13.0", f"TOP={top}", f"{host} -E -x c++ -o x")
        monkeypatch.setenv("PATH", f"{top / 'bin'}:{SHELL}")
        told.add(find_toolkit("13.0").told)
    assert len(told) == 2


def listing(folder: Path, *known: int) -> str:
    script = fake_nvcc(folder, "13.0")
    script.write_text("#!/bin/sh\n" + "".join(f"echo compute_{n}\n" for n in known))
    return str(script)


def test_a_card_newer_than_nvcc_gets_code_that_the_driver_translates(tmp_path):
    nvcc = listing(tmp_path, 80, 90, 120)
    assert architecture_flags(nvcc, [(9, 0), (8, 0), (9, 0)]) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    )
    assert architecture_flags(nvcc, [(13, 0)]) == ("-gencode=arch=compute_120,code=compute_120",)
    with pytest.raises(BackendError, match=r"capability 8\.0 or newer, and this card has 7\.5"):
        architecture_flags(nvcc, [(7, 5)])


def test_a_torch_without_cuda_is_named_as_the_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="built without CUDA"):
        toolchain.cuda_compilers([(9, 0)])


@pytest.mark.parametrize("kind", ["wrapper", "link", "folder with spaces"])
def test_the_nvcc_of_this_machine_compiles_and_links_through(kind, tmp_path, monkeypatch):
    """Builds a library of a kernel and of C++ that calls the runtime, as operators are built."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc, the CUDA compiler, and this machine has none")
    release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    needed = re.search(r"release ([\d.]+)", release.stdout)[1]
    real = Path(find_toolkit(needed).include_flags[1]).parents[
        2 if "targets" in find_toolkit(needed).include_flags[1] else 0
    ]
    nvcc = tmp_path / "two words" / "bin" / "nvcc"
    if kind == "folder with spaces":
        nvcc.parent.parent.symlink_to(real)
    else:
        nvcc.parent.mkdir(parents=True)
        if kind == "link":
            nvcc.symlink_to(real / "bin" / "nvcc")
        else:
            nvcc.write_text(f'#!/bin/sh\nexec "{real}/bin/nvcc" "$@"\n')
            nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nvcc.parent}:{SHELL}")
    found = find_toolkit(needed)
    (tmp_path / "a.cu").write_text("__global__ void f() {}\nint g() { f<<<1, 1>>>(); return 0; }\n")
    (tmp_path / "b.cpp").write_text(
        "#include <cuda_runtime_api.h>\nint h() { int n; return cudaGetDeviceCount(&n); }\n"
    )
    flags = architecture_flags(found.nvcc, [(9, 0)])
    for command in (
        [found.nvcc, *toolchain.NVCC_FLAGS, *flags, "-c", "a.cu", "-o", "a.o"],
        ["c++", "-fPIC", *found.include_flags, "-c", "b.cpp", "-o", "b.o"],
        ["c++", "-shared", "-Wl,--no-undefined", "a.o", "b.o", *found.link_flags, "-o", "c.so"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
