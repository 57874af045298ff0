"""The only place that touches environment variables: those of launchers and of libraries.

Which variables a launcher sets, and what they mean, is in `launchers`; here they are only read, and
set for the libraries that insist on them and for the processes that the program starts.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

# Of this process, since the launch was decided; the only one there is before.
_ranks = {"rank": 0, "local_rank": 0}


def variables() -> dict[str, str]:
    """Returns a copy of the environment."""
    return dict(os.environ)


def prepare_libraries(accelerator: str) -> None:
    """Sets up logging and device choice of Lightning, DeepSpeed and wandb before their import.

    accelerator: "cpu" or "gpu", already resolved.
    """
    # DeepSpeed otherwise takes a GPU that is present although the run is on the CPU.
    os.environ["DS_ACCELERATOR"] = "cpu" if accelerator == "cpu" else "cuda"
    # DeepSpeed's start-up talk (builder probing, every collective) hides our own messages.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|deepspeed)\b.*")
    warnings.filterwarnings("ignore", message=".*pkg_resources.*")
    # DeepSpeed calls collectives by names that torch is about to rename.
    warnings.filterwarnings("ignore", message=r".*`torch\.distributed\.\w+` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
    if _ranks["local_rank"] != 0:
        # Which kernels cannot be built is a matter of the machine; its first process tells.
        logging.getLogger("rwkv_train.ops").setLevel(logging.ERROR)
    _import_torchmetrics()


def _import_torchmetrics() -> None:
    """Imports torchmetrics, as Lightning would, but as if transformers and scipy were missing.

    It imports both wherever they are installed, for metrics that no run computes: over a second of
    the processor's time at every start. Whoever imports them later finds them.
    """
    if "torchmetrics" in sys.modules:
        return
    # What torchmetrics asks which libraries there are, and the names by which that finds them.
    asked: Any = import_module("lightning_utilities.core.imports")
    kept = {name: getattr(asked, name, None) for name in ("find_spec", "_version")}
    caches: list[Any] = [
        getattr(asked, name, None) for name in ("package_available", "module_available")
    ]
    if not all(kept.values()) or not all(hasattr(cache, "cache_clear") for cache in caches):
        # Another release of it: torchmetrics imports what it likes.
        return
    try:
        asked.find_spec = _hiding(kept["find_spec"], None)
        asked._version = _hiding(kept["_version"], PackageNotFoundError)
        for cache in caches:
            cache.cache_clear()
        import_module("torchmetrics")
    finally:
        vars(asked).update(kept)
        for cache in caches:
            cache.cache_clear()


def _hiding(find: Any, error: type[Exception] | None) -> Any:
    """Returns `find`, which for a library to be hidden raises the error, or returns None."""

    def found(name: str) -> Any:
        if name not in ("scipy", "transformers"):
            return find(name)
        if error is not None:
            raise error(name)
        return None

    return found


def remember_ranks(rank: int, local_rank: int) -> None:
    """Keeps who this process is, as decided, for `is_rank_zero`."""
    _ranks.update(rank=rank, local_rank=local_rank)


def is_rank_zero() -> bool:
    """Tells whether this process prints and writes: the first of the first machine."""
    return _ranks["rank"] == 0


def child_variables(told: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a process that the program starts: its own, and `told`."""
    # A program that is not installed has found the package by itself.
    package = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if package in sys.path and package not in paths:
        paths.append(package)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **told}


@contextmanager
def libraries_told(told: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that DeepSpeed reads, and restores what was there at the end."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forget(name: str) -> None:
    """Removes a variable that was for this process alone, not for those that it starts."""
    os.environ.pop(name, None)


def set_unless_given(name: str, value: str) -> None:
    """Sets a variable that nobody has set."""
    os.environ.setdefault(name, value)


def quiet_profiler() -> None:
    """Keeps torch's profiler from printing when it starts and stops; before its first use."""
    # Above its highest level.
    set_unless_given("KINETO_LOG_LEVEL", "6")


def quiet_connections() -> None:
    """Keeps torch from warning of every address without a name and every attempt to connect.

    Before torch's import.
    """
    set_unless_given("TORCH_CPP_LOG_LEVEL", "ERROR")


def local_rank() -> int:
    """Returns the number of this process on its machine, and so of its device."""
    return _ranks["local_rank"]


def is_local_rank_zero() -> bool:
    """Tells whether this process speaks for its machine."""
    return _ranks["local_rank"] == 0


def extension_root() -> str | None:
    """Returns where the user wants torch's extensions, None for the usual place."""
    return os.environ.get("TORCH_EXTENSIONS_DIR")


def extension_compiler() -> str:
    """Returns the C++ compiler that torch calls for extensions."""
    return os.environ.get("CXX") or "c++"


def put_on_path(folder: str) -> None:
    """Lets programs in a folder be found by name, after all others."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if folder not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, folder])
