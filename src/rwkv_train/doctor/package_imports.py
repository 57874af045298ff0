"""Checks that what a run imports can be imported, and how long that takes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, Said, fault, good, in_one_line, skipped
from rwkv_train.doctor.python_packages import REASONS, installed_version, remedy_for
from rwkv_train.version import DISTRIBUTION

# Distribution -> what Python imports.
_LIBRARIES = {
    "tyro": "tyro",
    "PyYAML": "yaml",
    "safetensors": "safetensors",
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
    if not (yield from import_answers("torch", "torch")):
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
            remedy_for("numpy", force=True),
        )
        return
    kind = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    vectors = torch.backends.cpu.get_cpu_capability()
    yield good(
        f"{kind}, shares arrays with numpy, computes with {vectors}", machine=machine_record()
    )


def check_lightning(folder: Path) -> Answers:
    """Yields what importing Lightning says, and then all that a run imports."""
    from rwkv_train.training.environment import prepare_libraries

    yield "import torchmetrics"
    try:
        prepare_libraries("cpu")
    except Exception as error:
        yield _import_fault("torchmetrics", "pytorch-lightning", error)
        return
    if not (yield from import_answers("pytorch_lightning", "pytorch-lightning")):
        return
    yield "import rwkv_train.training.run"
    try:
        importlib.import_module("rwkv_train.training.run")
    except Exception as error:
        yield _import_fault("rwkv_train.training.run", DISTRIBUTION, error)


def check_deepspeed(folder: Path) -> Answers:
    """Yields what importing DeepSpeed says, where it is installed."""
    if find_spec("deepspeed") is None:
        yield skipped(
            "not installed; --strategy deepspeed_stage_1, _2 and _3 need it",
            remedy_for("deepspeed"),
        )
        return
    from rwkv_train.training.environment import prepare_libraries

    prepare_libraries("cpu")
    yield from import_answers("deepspeed", "deepspeed")


def check_libraries(folder: Path) -> Answers:
    """Yields a fault for every small library that cannot be imported."""
    failed = []
    for package, module in _LIBRARIES.items():
        answers = import_answers(module, package)
        for said in answers:
            # Eleven lines for what is as it should be would hide the others.
            if isinstance(said, str) or said.level != "ok":
                yield said
            if isinstance(said, Finding) and said.level != "ok":
                failed.append(package)
    if not failed:
        yield good(f"{', '.join(_LIBRARIES)}: all are imported")


def import_answers(module: str, package: str) -> Generator[Said, None, bool]:
    """Yields what importing a module says, its version and how long it took.

    Returns whether it was imported.
    """
    yield f"import {module}"
    began = time.perf_counter()
    try:
        found = importlib.import_module(module)
    except Exception as error:
        yield _import_fault(module, package, error)
        return False
    seconds = time.perf_counter() - began
    version = getattr(found, "__version__", None) or installed_version(package)
    told = f"{version or 'of some version'}, imported in {seconds:.1f} s"
    yield good(told, import_seconds=round(seconds, 2))
    return True


def _import_fault(module: str, package: str, error: Exception) -> Finding:
    """Returns why a module cannot be imported, with the command that installs what is missing."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == module:
        return fault(f"{module} is not installed", remedy_for(package))
    told = f"{module} cannot be imported: {in_one_line(f'{type(error).__name__}: {error}')}"
    if missing == "pkg_resources":
        return fault(f"{told} ({REASONS['setuptools']})", remedy_for("setuptools"))
    # What it lacks is one of its own requirements, which pip knows by another name perhaps.
    is_own = missing is None or missing.partition(".")[0] == module.partition(".")[0]
    return fault(told, remedy_for(package, force=is_own))
