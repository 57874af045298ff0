"""Initial weights: rwkv-init.pth as RWKV-LM's stage 1 writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.checkpoint.lazy_tensors import outlines_of, picked, write_into
from rwkv_train.checkpoint.names import INIT
from rwkv_train.checkpoint.weights import fit_weights, load_weights, save_weights
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import listed
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.models.adapters import attach_adapters, is_adapter
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.models.transfer import enlarge
from rwkv_train.training.checkpointing.weight_files import require_same_kind, stored_dtype
from rwkv_train.training.environment import is_rank_zero
from rwkv_train.training.start.resume_point import (
    Fresh,
    FromState,
    FromWeights,
    ResumePoint,
    StartWeights,
)


class StartModel(NamedTuple):
    """The network with its starting weights, fp32 on the CPU.

    base: what the run remembers of its frozen base model, None without one.
    """

    network: RWKV
    base: Mapping[str, Any] | None


def make_model(config: ResolvedConfig, point: ResumePoint) -> StartModel:
    """Builds the network with the weights of `point`, or with new initial values.

    Raises CheckpointError when the weights do not fit.
    """
    model = build_model(
        config.model,
        wkv_backend=config.hardware.wkv_backend,
        grad_cp=config.train.grad_cp,
        train_states=config.train.train_type == "states" or _has_states(point),
        chunk_len=config.train.chunk_len,
    )
    if isinstance(point, Fresh):
        initialize(model, seed=config.train.random_seed, lr_init=config.optim.lr_init)
        if point.donor is not None:
            _take_over(model, point.donor, config.train.random_seed)
        return StartModel(model, None)
    start = _fit(model, config, point)
    # After the base weights: an adapter is attached to a matrix that has its values.
    if config.train.train_type == "lora":
        _attach(model, config, start.tensors if isinstance(point, FromState) else None)
    return StartModel(model, start.base)


def _has_states(point: ResumePoint) -> bool:
    """Tells whether the run starts from a model with trained initial states, which stay part of it.

    They learn where all weights do, and are part of the frozen base model under adapters.
    """
    shapes = {} if isinstance(point, Fresh) else point.shapes
    return any(name.endswith(".time_state") for name in shapes)


def _fit(model: RWKV, config: ResolvedConfig, point: FromWeights | FromState) -> StartWeights:
    """Loads the weights of `point`; returns them with those of adapters, which are still to come.

    What is missing, and may be, gets the initial value.
    """
    if isinstance(point, FromState):
        require_same_kind(point.state, point.path, config)
    start = point.load()
    # The model has no adapters yet, and `fit_weights` would refuse names it does not know.
    found = picked(start.tensors, [name for name in start.tensors if not is_adapter(name)])
    own = model.state_dict()
    # Only what is missing: initial values of a large model take minutes, and draw from the seed
    # by name, so that the rest is not needed for them.
    initialize(
        model,
        seed=config.train.random_seed,
        lr_init=config.optim.lr_init,
        only=set(own) - set(found),
    )
    try:
        _, report = fit_weights(
            own, outlines_of(found), partial=config.train.load_partial, optional=model.optional_keys
        )
    except CheckpointError as error:
        raise CheckpointError(f"{point.path}: {error}") from error
    for name in found:
        # What is on the disk goes into the model: no second one is made of it.
        write_into(own[name], found, name)
    if is_rank_zero() and str(report):
        print(f"{point.path}: {report}")
    return start


def _attach(model: RWKV, config: ResolvedConfig, values: Mapping[str, Tensor] | None) -> None:
    attach_adapters(
        model,
        config.adapter,
        listed(config.adapter.lora_targets),
        seed=config.train.random_seed,
        values=values,
    )


def _take_over(model: RWKV, donor: Path, seed: int) -> None:
    """Takes initial values from a smaller model, resized; prints what was done."""
    report = enlarge(model, load_weights(donor, torch.float32), seed=seed)
    if is_rank_zero():
        print(f"{donor}: {report}")


def save_initial_weights(config: ResolvedConfig, point: ResumePoint) -> tuple[Path, RWKV]:
    """Writes rwkv-init.pth in the training precision; returns its path and the model.

    Raises ConfigError when it exists already: it may be someone's base model.
    """
    # Under the name that RWKV-LM's scripts look for.
    path = Path(config.train.proj_dir) / INIT
    if path.exists():
        raise ConfigError(f"{path} exists already; remove it yourself or choose another --proj_dir")
    model = make_model(config, point).network
    save_weights(path, model.state_dict(), stored_dtype(config))
    return path, model


def write_initial_weights(config: ResolvedConfig, point: ResumePoint, notes: list[str]) -> None:
    """Writes rwkv-init.pth, which is all of stage 1, and says what to do next.

    Raises ConfigError when the file exists.
    """
    for note in notes:
        print(f"  note        {note}")
    path, model = save_initial_weights(config, point)
    shape = config.model
    count = sum(p.numel() for p in model.parameters())
    dtype = str(stored_dtype(config)).removeprefix("torch.")
    print(
        f"wrote {path}: RWKV-{shape.rwkv_version}, {shape.n_layer} layers, width {shape.n_embd}, "
        f"vocabulary {shape.vocab_size}, {count / 1e6:.1f} M parameters, {dtype}"
    )
    print("train it with the same flags and --train_stage 3")
