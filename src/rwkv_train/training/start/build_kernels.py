"""Builds the kernels that a run needs before its ranks start, and tells who serves each operator.

Left to the first step, every rank of every card would meet a compiler in the middle of the run.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.config.machine_schema import HardwareConfig
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.versions import DEFAULT_VERSION, VERSIONS
from rwkv_train.errors import TrainerError
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.ops.backends.dispatch import AUTO, Backend, Call, choose
from rwkv_train.ops.backends.measurements import card_of
from rwkv_train.ops.native import build
from rwkv_train.ops.native.prebuild import prebuild
from rwkv_train.processors import usable_processors

# Of the operators that layers call, those over heads; the others are over channels.
OVER_HEADS = ("keys", "head_norm_gate")
# What every model calls around its layers.
MODEL_OPERATORS = ("embedding_norm", "head_loss")


class OperatorBackend(NamedTuple):
    """The backend that serves an operator, and on what: "native" on "sm_90", as an example.

    refusal: why the project's own kernel does not, None where it does.
    """

    operator: str
    backend: str
    architecture: str
    refusal: str | None = None


def build_ahead(config: RunConfig) -> None:
    """Builds the kernels of a run for the devices that are there, before its processes start.

    config: as given, before anything was looked at. What it does not tell, and what cannot be
    built, is left to `build_for`, which every process calls and which tells of it.
    """
    version = _version(config)
    if version is None:
        return
    on_gpu = config.hardware.accelerator != "cpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    for operator in _prebuild(_kernels(version, config.hardware), device):
        build.load(operator, device)


def build_for(config: ResolvedConfig) -> list[OperatorBackend]:
    """Builds and loads the kernels of a run, for the cards that are there; returns who serves.

    config: complete. Called by every process: the first of a machine compiles, the others wait
    for it, saying so. Raises BackendError when a backend asked for by name cannot serve.
    """
    found = []
    names = _operators(config.model.rwkv_version, config.hardware.wkv_backend)
    _prebuild(_kernels(config.model.rwkv_version, config.hardware), _device(config).type)
    for operator, name in names.items():
        served, call = choose_backend(operator, name, config)
        # A backend that was asked for by name is no news.
        steps_down = name == AUTO and not served.name.startswith("native")
        refusal = _refusal(operator, call) if steps_down else None
        found.append(OperatorBackend(operator, served.name, card_of(call.device), refusal))
    return found


def _operators(version: str, wkv_backend: str) -> Mapping[str, str]:
    """Returns the operators of a version -> the name of the backend that is asked for."""
    row = VERSIONS[version]
    return {
        row.operator: wkv_backend,
        **dict.fromkeys((*row.layer_operators, *MODEL_OPERATORS), AUTO),
    }


def _kernels(version: str, hardware: HardwareConfig) -> Mapping[str, str]:
    """Returns `_operators`, and where processes share samples the forms that know the state alone.

    These are served by what serves the operator, so that the header need not tell of them.
    """
    names = dict(_operators(version, hardware.wkv_backend))
    if hardware.context_parallel > 1:
        # With one of a family all of it is built.
        names[build.FAMILIES["pieces"][0]] = hardware.wkv_backend
    return names


def _prebuild(names: Mapping[str, str], device: str) -> list[str]:
    """Builds side by side what the cache lacks; returns the operators that want kernels."""
    wanted = [op for op, name in names.items() if name == AUTO or name.startswith("native")]
    prebuild(wanted, device, usable_processors())
    return wanted


def _version(config: RunConfig) -> str | None:
    """Returns the version of RWKV of a run, None where a resumed one tells it."""
    given, train = config.model.rwkv_version, config.train
    if given is not None:
        return given
    if any(Path(train.proj_dir).glob("rwkv-*")):
        return None
    if train.load_model is None:
        return DEFAULT_VERSION
    try:
        return config_from_shapes(read_shapes(Path(train.load_model))).rwkv_version
    except TrainerError:
        return None


def choose_backend(operator: str, name: str, config: ResolvedConfig) -> tuple[Backend, Call]:
    """Returns the backend that serves an operator in a run, and its call; compiled and loaded.

    name: as `--wkv_backend`. Raises BackendError when that cannot serve the call.
    """
    model, train = config.model, config.train
    # An operator without heads counts channels, or logits.
    version, size = VERSIONS[model.rwkv_version], model.head_size or 1
    has_heads = operator == version.operator or operator in OVER_HEADS
    channels = model.vocab_size if operator == "head_loss" else model.n_embd
    heads = (model.dim_att // size, size) if has_heads else (channels, 1)
    call = Call(
        op=operator,
        device=_device(config),
        dtype=DTYPES[config.hardware.precision],
        batch=train.micro_bsz,
        time=train.chunk_len or config.data.ctx_len,
        heads=heads[0],
        head_size=heads[1],
        needs_grad=True,
        has_state=False,
        has_reset=False,
    )
    backends = importlib.import_module(f"rwkv_train.ops.{operator}").BACKENDS
    # Why "auto" steps down is told by the header, once for the run.
    log = logging.getLogger("rwkv_train.ops")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return backends[choose(backends, name, call)], call
    finally:
        log.setLevel(level)


def describe_operators(operators: list[OperatorBackend], accelerator: str) -> list[tuple[str, str]]:
    """Returns the lines of the header, name and text: who serves, then loudly what lacks.

    Operators that one backend serves, or that lack their kernels for one reason, share a line.
    accelerator: "gpu" makes a missing kernel news of its own: the run is several times slower.
    """
    served: dict[str, list[str]] = {}
    lacking: dict[str, list[str]] = {}
    for found in operators:
        served.setdefault(f"{found.backend}, {found.architecture}", []).append(found.operator)
        if found.refusal is not None:
            lacking.setdefault(found.refusal, []).append(found.operator)
    lines = [("operators", f"{', '.join(names)}: {backend}") for backend, names in served.items()]
    where = "THE GPU" if accelerator == "gpu" else "the CPU"
    for refusal, names in lacking.items():
        kernel = "runs on {} without its kernel" if len(names) == 1 else "run on {} without kernels"
        text = f"{', '.join(names)} {kernel.format(where)}, several times slower, because {refusal}"
        lines.append(("WARNING" if accelerator == "gpu" else "note", " ".join(text.split())))
    return lines


def _device(config: ResolvedConfig) -> torch.device:
    return torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu")


def _refusal(operator: str, call: Call) -> str | None:
    """Returns why the project's own kernel does not serve the call, None where it could."""
    native = importlib.import_module(f"rwkv_train.ops.{operator}.native")
    reason: str | None = native.refuses(call)
    return reason
