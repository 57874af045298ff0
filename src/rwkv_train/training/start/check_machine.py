"""Refuses, before anything is written, what this machine cannot do: packages, kernels, folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rwkv_train.compiler import find_cpp_path
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import BackendError, ConfigError, missing_package
from rwkv_train.ops.backends.dispatch import AUTO
from rwkv_train.training.start.build_kernels import choose_backend


def check_packages(config: ResolvedConfig) -> None:
    """Raises ConfigError when the strategy of a resolved run lacks its package.

    Everything that is not needed by every run is an extra of pyproject.toml. What only shows a run,
    plots and Weights & Biases, refuses nothing when it is missing (`reporting`). That of the 8-bit
    optimizer is looked for by `discover`: the choice of the optimizer depends on it.
    """
    if config.train.train_stage == 1:
        # Initial weights are written by torch alone, with the flags of the run that follows.
        return
    strategy = config.hardware.strategy
    # Looked up and not imported: an import of DeepSpeed costs seconds, and reads the environment
    # that `prepare_libraries` sets afterwards.
    if strategy.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        message = missing_package(f"--strategy {strategy}", "deepspeed", "deepspeed")
        raise ConfigError(f"{message}; or use --strategy ddp")
    if config.hardware.compile:
        _check_compiler(config.hardware.accelerator)


def _check_compiler(accelerator: str) -> None:
    """Raises ConfigError when torch.compile lacks what makes its code run."""
    if accelerator == "gpu":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError("--compile 1 needs triton on a GPU: pip install triton")
        return
    try:
        find_cpp_path()
    except BackendError as error:
        raise ConfigError(f"--compile 1: {error}; or leave it out") from error


def check_backend(config: ResolvedConfig) -> None:
    """Builds and loads the kernels that a run asks for by name; raises BackendError if it cannot.

    config: complete. With "auto" there is always a backend, and nothing is done.
    """
    name = config.hardware.wkv_backend
    if name == AUTO or config.train.train_stage == 1:
        return
    choose_backend(VERSIONS[config.model.rwkv_version].operator, name, config)


def make_folder(proj_dir: str) -> None:
    """Makes the project folder; raises ConfigError when it cannot be written."""
    folder = Path(proj_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not tell: the file system may be read-only, or full.
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise ConfigError(
            f"--proj_dir {proj_dir} cannot be written ({reason}); choose a folder of your own"
        ) from error
