"""Checks that what a run imports can be imported, and how long that takes."""

from __future__ import annotations

import importlib
import time
from importlib.util import find_spec
from pathlib import Path

from rwkv_train.doctor.findings import (
    Answers,
    Finding,
    fault,
    good,
    in_one_line,
    pip_install,
    skipped,
)
from rwkv_train.doctor.python_packages import (
    REASONS,
    TORCH_TRIED,
    installed_version,
    requirement_lines,
)
from rwkv_train.requirement_lines import split_line
from rwkv_train.version import DISTRIBUTION

# Distribution -> what Python imports.
_LIBRARIES = {
    "tyro": "tyro",
    "PyYAML": "yaml",
    "safetensors": "safetensors.torch",
    "tokenizers": "tokenizers",
    "pyrwkv-tokenizer": "pyrwkv_tokenizer",
    "orjson": "orjson",
    "tqdm": "tqdm",
}


def check_numpy(folder: Path) -> Answers:
    """Yields what importing numpy says."""
    yield from import_answers("numpy", "numpy")


def check_torch(folder: Path) -> Answers:
    """Yields what importing torch says, and whether it shares arrays with numpy."""
    found = list(import_answers("torch", "torch"))
    if not any(isinstance(said, Finding) and said.level == "ok" for said in found):
        yield from found
        return
    import numpy
    import torch

    from rwkv_train.machine_record import machine_record

    try:
        torch.from_numpy(numpy.zeros(2)).numpy()
    except (RuntimeError, TypeError) as error:
        yield fault(
            f"torch {torch.__version__} and numpy {numpy.__version__} do not share arrays: "
            f"{in_one_line(str(error))}",
            pip_install("numpy>=1.26,<3", force=True),
        )
        return
    kind = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield good(
        f"{torch.__version__}, {kind}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        machine=machine_record(),
    )


def check_lightning(folder: Path) -> Answers:
    """Yields what importing Lightning says, and then all that a run imports."""
    from rwkv_train.training.environment import prepare_libraries

    try:
        prepare_libraries("cpu")
    except Exception as error:
        yield _import_fault("torchmetrics", "torchmetrics", error)
        return
    found = list(import_answers("pytorch_lightning", "pytorch-lightning"))
    yield from found
    if any(isinstance(said, Finding) and said.level == "ok" for said in found):
        yield "import rwkv_train.training.run"
        try:
            importlib.import_module("rwkv_train.training.run")
        except Exception as error:
            yield _import_fault("rwkv_train.training.run", DISTRIBUTION, error)


def check_deepspeed(folder: Path) -> Answers:
    """Yields what importing DeepSpeed says, where it is installed."""
    if find_spec("deepspeed") is None:
        (line,) = requirement_lines().get("deepspeed", ["deepspeed"])
        yield skipped(
            "not installed; --strategy deepspeed_stage_1, _2, _3 need it", pip_install(line)
        )
        return
    from rwkv_train.training.environment import prepare_libraries

    prepare_libraries("cpu")
    yield from import_answers("deepspeed", "deepspeed")


def check_libraries(folder: Path) -> Answers:
    """Yields a fault for every small library that cannot be imported."""
    faults = 0
    for package, module in _LIBRARIES.items():
        if find_spec(module.partition(".")[0]) is None:
            # The check of requirements has told.
            faults += 1
            continue
        for said in import_answers(module, package):
            if isinstance(said, str) or said.level != "ok":
                faults += isinstance(said, Finding)
                yield said
    if faults == 0:
        yield good(f"{', '.join(_LIBRARIES)} can be imported")
    else:
        yield skipped(f"{faults} of {len(_LIBRARIES)} cannot be imported")


def import_answers(module: str, package: str) -> Answers:
    """Yields what importing a module says, its version and how long it took."""
    yield f"import {module}"
    began = time.perf_counter()
    try:
        found = importlib.import_module(module)
    except Exception as error:
        yield _import_fault(module, package, error)
        return
    seconds = time.perf_counter() - began
    version = (
        getattr(found, "__version__", None) or installed_version(package) or "of unknown version"
    )
    yield good(f"{version}, imported in {seconds:.1f} s", import_seconds=round(seconds, 2))


def _import_fault(module: str, package: str, error: Exception) -> Finding:
    """Returns why a module cannot be imported, with the package that has to be installed."""
    lines = {split_line(line)[0]: line for line in requirement_lines().get("", [])}
    lines["torch"] = f"torch=={TORCH_TRIED}"
    lines |= {"deepspeed": requirement_lines().get("deepspeed", ["deepspeed"])[0]}
    told = in_one_line(f"{type(error).__name__}: {error}")
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == module.partition(".")[0]:
        return fault(f"{module} is not installed", pip_install(lines.get(package, package)))
    if missing == "pkg_resources":
        return fault(
            f"{module} cannot be imported: {told} ({REASONS['setuptools']})",
            pip_install(lines.get("setuptools", "setuptools<81")),
        )
    if missing is not None:
        return fault(f"{module} cannot be imported: {told}", pip_install(missing.partition(".")[0]))
    return fault(
        f"{module} cannot be imported: {told}", pip_install(lines.get(package, package), force=True)
    )
