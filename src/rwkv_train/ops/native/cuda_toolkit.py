"""Finds a CUDA compiler that fits torch, and the headers and the library that belong to it.

nvcc itself tells where they lie (`nvcc --dryrun`): its path does not, where it is a wrapper script,
a link, or one of pip's wheels, whose folders are laid out otherwise than a toolkit's.
`python -m rwkv_train.ops.native.cuda_toolkit` tells a script whether one is missing.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.compiler import QUESTION_S, run_compiler, version_text
from rwkv_train.errors import BackendError

USUAL_FOLDERS = (Path("/usr/local/cuda/bin"), Path("/opt/cuda/bin"))
# What the C++ compiler looks through anyway: named by -isystem they would come too early.
SYSTEM_HEADERS = (Path("/usr/include"), Path("/usr/local/include"))
SYSTEM_LIBRARIES = (
    *(Path(folder, f"{platform.machine()}-linux-gnu") for folder in ("/usr/lib", "/lib")),
    *map(Path, ("/usr/lib64", "/usr/lib")),
)
# Half of a toolkit has the first of them and lacks the second.
NEEDED_HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h")
_WHEELS = ("nvcc", "crt", "cccl", "runtime")


class CudaToolkit(NamedTuple):
    """An nvcc and what belongs to it.

    told: what the machine code depends on besides flags: versions, folders, the host compiler.
    include_flags, link_flags: with which a C++ compiler finds headers and runtime library.
    """

    nvcc: str
    told: str
    include_flags: tuple[str, ...]
    link_flags: tuple[str, ...]


def find_toolkit(needed: str) -> CudaToolkit:
    """Returns the first toolkit that fits, of CUDA_HOME, the PATH, usual folders and pip's wheels.

    needed: the version that torch was built for, "13.0". Raises BackendError with what was found
    instead and the remedy.
    """
    reasons = []
    for nvcc in _candidates(needed):
        try:
            return _examined(nvcc, needed)
        except (BackendError, OSError) as error:
            reasons.append(str(error))
    home = _home()
    if home and not Path(home, "bin", "nvcc").exists():
        reasons.append(f"CUDA_HOME={home} has no bin/nvcc")
    found = "; ".join(reasons) or "none is on the PATH"
    raise BackendError(
        f"the CUDA compiler nvcc for CUDA {needed}, which torch was built for, is missing: "
        f"{found}; {remedy(needed)}"
    )


def main() -> int:
    """Prints the version of CUDA for which a compiler is missing, or nothing; returns 0."""
    needed = torch.version.cuda
    if needed is not None:
        try:
            find_toolkit(needed)
        except BackendError:
            print(needed)
    return 0


def remedy(needed: str) -> str:
    """Returns how to get a compiler for a version of CUDA."""
    toolkit = f"install the CUDA toolkit {needed} and put its bin folder first on the PATH"
    if int(needed.partition(".")[0]) < 13:
        # pip's older wheels hold the assembler without the compiler.
        return toolkit
    wheels = " ".join(f'"nvidia-cuda-{name}=={needed}.*"' for name in _WHEELS)
    return f'run `pip install {wheels} "nvidia-nvvm=={needed}.*"`, or {toolkit}'


def architecture_flags(nvcc: str, capabilities: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Returns flags that compile for cards of these compute capabilities.

    A card that nvcc does not know yet gets code of the newest older one, which its driver
    translates. Raises BackendError when nvcc knows no older one.
    """
    listed = run_compiler([nvcc, "--list-gpu-arch"], QUESTION_S)
    known = {int(number) for number in re.findall(r"^compute_(\d+)$", listed.stdout, re.M)}
    flags = []
    for major, minor in sorted(set(capabilities)):
        wanted = major * 10 + minor
        # On Hopper the "a" variant is needed for wgmma and the bulk copy engine.
        name = f"{wanted}a" if wanted == 90 else str(wanted)
        if not known or wanted in known:
            flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
            continue
        older = max((number for number in known if number < wanted), default=None)
        if older is None:
            raise BackendError(
                f"{nvcc} compiles for compute capability {min(known) / 10} or newer, and this card "
                f"has {major}.{minor}"
            )
        flags.append(f"-gencode=arch=compute_{older},code=compute_{older}")
    return tuple(dict.fromkeys(flags))


def host_compiler_fault(log: str) -> str | None:
    """Returns the remedy when nvcc's log says that it refuses the host compiler, else None."""
    if not re.search(r"unsupported (GNU|clang|Microsoft)|unsupported host compiler", log, re.I):
        return None
    newest = re.search(r"later than (\d+)", log)
    older = f"g++-{newest[1] if newest else 13}"
    return (
        f"nvcc refuses the compiler of this machine; install an older one, for example {older}, "
        f"and start with NVCC_CCBIN={older} before the command"
    )


def _home() -> str | None:
    """Returns the toolkit that the user has chosen by the usual variable."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def _candidates(needed: str) -> Iterator[str]:
    """Yields the paths of all nvcc that this machine has, each file once."""
    home, path = _home(), os.environ.get("PATH", "")
    folders = [Path(home, "bin")] if home else []
    folders += [Path(folder) for folder in path.split(os.pathsep) if folder]
    folders += [Path(sys.executable).parent, *USUAL_FOLDERS]
    wheels = Path("nvidia", f"cu{needed.partition('.')[0]}", "bin")
    # torch may lie in another place than what was installed for it later.
    folders += [Path(entry or ".", wheels) for entry in sys.path]
    folders += [Path(entry, "..", wheels) for entry in torch.__path__]
    seen = set()
    for folder in folders:
        found = shutil.which("nvcc", path=str(folder))
        if found is None:
            continue
        real = Path(found).resolve()
        if real not in seen:
            seen.add(real)
            # nvcc looks for its own parts beside the name by which it was called; a wrapper for
            # the part that it is linked to.
            yield str(real if (real.parent / "nvcc.profile").exists() else Path(found).absolute())


def _examined(nvcc: str, needed: str) -> CudaToolkit:
    """Returns the toolkit of this nvcc; raises BackendError when it does not fit, or is half."""
    version = version_text(nvcc)
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None or release[1] != needed.partition(".")[0]:
        got = f"CUDA {release[1]}.{release[2]}" if release else "an unknown version of CUDA"
        raise BackendError(f"{nvcc} is for {got} while torch was built for CUDA {needed}")
    question = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    done = run_compiler(question, QUESTION_S)
    if done.returncode != 0:
        raise BackendError(f"{nvcc} does not start its compiler: {_last_line(done.stderr)}")
    lines = done.stderr.splitlines()
    told = {name: _words(lines, name) for name in ("TOP", "INCLUDES", "LIBRARIES")}
    tops = [Path(top) for top in told["TOP"]] or [Path(nvcc).parent.parent]
    headers = _folders(told["INCLUDES"], "-I") + [top / "include" for top in tops]
    libraries = _folders(told["LIBRARIES"], "-L")
    libraries += [top / name for top in tops for name in ("lib64", "lib")]
    return CudaToolkit(
        nvcc,
        "\n".join([version, *(repr(words) for words in told.values()), _host_compiler(lines)]),
        _include_flags(nvcc, headers),
        _link_flags(nvcc, libraries, release[1]),
    )


def _include_flags(nvcc: str, folders: list[Path]) -> tuple[str, ...]:
    for folder in [*folders, *SYSTEM_HEADERS]:
        if all((folder / name).exists() for name in NEEDED_HEADERS):
            system = folder.resolve() in SYSTEM_HEADERS
            return () if system else ("-isystem", str(folder.resolve()))
    raise BackendError(
        f"{nvcc} comes without headers: no {' and '.join(NEEDED_HEADERS)} in "
        f"{', '.join(sorted({str(folder.resolve()) for folder in folders}))}"
    )


def _link_flags(nvcc: str, folders: list[Path], major: str) -> tuple[str, ...]:
    for folder in [*folders, *SYSTEM_LIBRARIES]:
        # pip's wheels have the library without the name that linkers look for.
        for name, flag in (
            ("libcudart.so", "-lcudart"),
            (f"libcudart.so.{major}", f"-l:libcudart.so.{major}"),
        ):
            if (folder / name).exists():
                return (f"-L{folder.resolve()}", flag)
    raise BackendError(
        f"{nvcc} comes without the runtime library: no libcudart.so.{major} in "
        f"{', '.join(sorted({str(folder.resolve()) for folder in folders}))}"
    )


def _words(lines: Sequence[str], name: str) -> list[str]:
    """Returns the words of `#$ NAME=...`, the last line of that name; TOP is one word."""
    found = [line.partition("=")[2] for line in lines if line.startswith(f"#$ {name}=")]
    if not found:
        return []
    if name == "TOP":
        return [found[-1].strip()]
    try:
        return shlex.split(found[-1])
    except ValueError:
        # nvcc quotes nothing inside a name.
        raise BackendError(
            f"nvcc names its folders by {found[-1].strip()}, which cannot be read; install it in a "
            "folder without quotation marks in its name"
        ) from None


def _folders(words: Sequence[str], flag: str) -> list[Path]:
    return [Path(word.removeprefix(flag)) for word in words if word.startswith(flag)]


def _host_compiler(lines: Sequence[str]) -> str:
    """Returns the words by which nvcc calls the compiler of the host, apart from file names."""
    call = next((line for line in lines if " -E -x c++ " in line), "")
    return re.sub(r'"[^"]*tmpxft[^"]*"', "", call)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason given")


if __name__ == "__main__":
    sys.exit(main())
