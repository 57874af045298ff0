"""Made-up CUDA toolkits for the tests of how one is found."""

from __future__ import annotations

from pathlib import Path


def fake_nvcc(folder: Path, release: str, *told: str) -> Path:
    """Writes an nvcc that tells its release, and `told` as the lines of a dry run."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"echo '#$ {line}' >&2\n" for line in told)
    script = folder / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        f"echo 'Cuda compilation tools, release {release}, V1'\n"
        f'if [ "$1" = --dryrun ]; then :\n{lines}fi\n'
    )
    script.chmod(0o755)
    return script


def fake_toolkit(top: Path, release: str, *, library: str = "lib/libcudart.so") -> Path:
    """Writes a toolkit with headers and a runtime library, and returns its nvcc."""
    for file in ("include/cuda_runtime_api.h", "include/crt/host_defines.h", library):
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).touch()
    return fake_nvcc(
        top / "bin",
        release,
        f"TOP={top}/bin/..",
        f'INCLUDES="-I{top}/bin/../include"',
        f'LIBRARIES= "-L{top}/bin/../lib64/stubs" "-L{top}/bin/../lib64"',
    )
