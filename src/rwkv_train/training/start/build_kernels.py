"""Builds the kernels that a run needs before its ranks start, and tells who serves each operator.

Left to the first step, every rank of every card would meet a compiler in the middle of the run.
"""

from __future__ import annotations

import importlib
import logging
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.ops.backends.dispatch import AUTO, Backend, Call, choose
from rwkv_train.ops.backends.measurements import card_of


class OperatorBackend(NamedTuple):
    """The backend that serves an operator, and on what: "native" on "sm_90", as an example.

    refusal: why the project's own kernel does not, None where it does.
    """

    operator: str
    backend: str
    architecture: str
    refusal: str | None = None


def build_for(config: ResolvedConfig) -> list[OperatorBackend]:
    """Builds and loads the kernels of a run, for the cards that are there; returns who serves.

    config: complete. Called by every process: the first of a machine compiles, the others wait
    for it, saying so. Raises BackendError when a backend asked for by name cannot serve.
    """
    found = []
    names = {VERSIONS[config.model.rwkv_version].operator: config.hardware.wkv_backend}
    for operator, name in {**names, "token_shift": AUTO}.items():
        served, call = choose_backend(operator, name, config)
        # A backend that was asked for by name is no news.
        steps_down = name == AUTO and not served.name.startswith("native")
        refusal = _refusal(operator, call) if steps_down else None
        found.append(OperatorBackend(operator, served.name, card_of(call.device), refusal))
    return found


def choose_backend(operator: str, name: str, config: ResolvedConfig) -> tuple[Backend, Call]:
    """Returns the backend that serves an operator in a run, and its call; compiled and loaded.

    name: as `--wkv_backend`. Raises BackendError when that cannot serve the call.
    """
    model, train = config.model, config.train
    # An operator without heads counts channels.
    size = model.head_size or 1
    heads = (model.n_embd, 1) if operator == "token_shift" else (model.dim_att // size, size)
    call = Call(
        op=operator,
        device=torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu"),
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
    """Returns the lines of the header, name and text: an operator a line, then loudly what lacks.

    accelerator: "gpu" makes a missing kernel news of its own: the run is several times slower.
    """
    lines = [
        ("operator", f"{found.operator}: {found.backend}, {found.architecture}")
        for found in operators
    ]
    for found in operators:
        if found.refusal is None:
            continue
        where = "THE GPU" if accelerator == "gpu" else "the CPU"
        text = (
            f"{found.operator} runs on {where} without its kernel, several times slower, because "
            f"{found.refusal}"
        )
        lines.append(("WARNING" if accelerator == "gpu" else "note", " ".join(text.split())))
    return lines


def _refusal(operator: str, call: Call) -> str | None:
    """Returns why the project's own kernel does not serve the call, None where it could."""
    native = importlib.import_module(f"rwkv_train.ops.{operator}.native")
    reason: str | None = native.refuses(call)
    return reason
