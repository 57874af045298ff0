"""Every CUDA kernel that is asked for by name is launched as the card allows, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gpu_standin.cells import KERNELS, SAMPLES_PER_STEP, SMALL
from tests.gpu_standin.standin_runs import Run, train_on

CONTEXT = 256  # long enough for several chunks and segments
# backend -> what its kernels are called
NAMES = {
    "native:scan": "scan_backward_kernel",
    "native:wide": "scan_backward_kernel",
    "native:chunks": "chunk_backward_kernel",
    "native:segments": "chunk_segment_backward_kernel",
}


def trained(folder: Path, data: Path, version: str, backend: str, card: str) -> Run:
    """Trains a few steps with one kernel, asked for by name."""
    flags = {
        **SMALL,
        **{"proj_dir": folder / "out", "data_file": data, "rwkv_version": version},
        **{"wkv_backend": backend, "ctx_len": CONTEXT, "micro_bsz": SAMPLES_PER_STEP},
        **{"exit_tokens": 3 * SAMPLES_PER_STEP * CONTEXT, "precision": "bf16"},
    }
    return train_on(folder, flags, card=card)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("version", ["5", "6", "7"])
def test_a_kernel_asked_for_serves_on_an_h100(tmp_path, data, version, backend):
    run = trained(tmp_path, data, version, backend, "H100")
    assert run.ended.returncode == 0, run.ended.stderr
    assert run.faults == []
    launched = run.kernels(KERNELS[version])
    assert any(NAMES[backend] in line for line in launched), launched


@pytest.mark.parametrize("backend", NAMES)
def test_a_kernel_fits_99_kib_or_is_refused(tmp_path, data, backend):
    run = trained(tmp_path, data, "7", backend, "RTX3090")
    assert run.faults == []
    if run.ended.returncode == 2:
        told = re.search(r"needs (\d+) KiB .* has 99 KiB", run.ended.stderr)
        assert told is not None and int(told[1]) > 99, run.ended.stderr
        assert run.logs == []
        return
    assert run.ended.returncode == 0, run.ended.stderr
    launched = run.kernels(KERNELS["7"])
    assert any(NAMES[backend] in line for line in launched), launched
