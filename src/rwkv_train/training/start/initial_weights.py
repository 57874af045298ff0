"""Initial weights: rwkv-init.pth as RWKV-LM's stage 1 writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.checkpoint.names import INIT
from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.weights import fit_weights, load_weights, save_weights
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import listed
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.models.adapters import attach_adapters, is_adapter
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.models.transfer import enlarge
from rwkv_train.training.checkpointing.weight_files import require_same_kind
from rwkv_train.training.environment import is_rank_zero
from rwkv_train.training.start.resume_point import Origin


def make_model(config: ResolvedConfig, origin: Origin) -> RWKV:
    """The network with its starting weights: those of `origin`, or fresh initial values.

    fp32, on the CPU. Raises CheckpointError when the weights do not fit.
    """
    model = build_model(
        config.model,
        wkv_backend=config.hardware.wkv_backend,
        grad_cp=config.train.grad_cp,
        train_states=config.train.train_type == "states",
        chunk_len=config.train.chunk_len,
    )
    if origin.kind == "fresh":
        initialize(model, seed=config.train.random_seed, lr_init=config.optim.lr_init)
        if origin.donor is not None:
            _take_over(model, origin.donor, config.train.random_seed)
    else:
        found = _fit(model, config, origin)
        if config.train.train_type == "lora":
            _attach(model, config, found if origin.kind == "state" else None)
    return model


def _fit(model: RWKV, config: ResolvedConfig, origin: Origin) -> dict[str, Tensor]:
    """Loads the weights of `origin`; returns them with those of adapters, which are still to come.

    What is missing, and may be, gets the initial value.
    """
    if origin.state is not None:
        require_same_kind(origin.state, origin.path, config)
    everything = origin.weights()
    found = {name: value for name, value in everything.items() if not is_adapter(name)}
    initialize(
        model,
        seed=config.train.random_seed,
        lr_init=config.optim.lr_init,
        only=set(model.state_dict()) - set(found),
    )
    try:
        weights, report = fit_weights(
            model.state_dict(),
            found,
            partial=config.train.load_partial,
            optional=model.optional_keys,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{origin.path}: {error}") from error
    model.load_state_dict(weights)
    if is_rank_zero() and str(report):
        print(f"{origin.path}: {report}")
    return everything


def _attach(model: RWKV, config: ResolvedConfig, values: dict[str, Tensor] | None) -> None:
    attach_adapters(
        model,
        config.adapter,
        listed(config.adapter.lora_targets),
        seed=config.train.random_seed,
        values=values,
    )


def _take_over(model: RWKV, donor: Path, seed: int) -> None:
    """Initial values from a smaller model, resized; says what was done."""
    report = enlarge(model, load_weights(donor, torch.float32), seed=seed)
    if is_rank_zero():
        print(f"{donor}: {report}")


def save_initial_weights(config: ResolvedConfig, origin: Origin) -> tuple[Path, RWKV]:
    """Writes rwkv-init.pth in the training precision; returns its path and the model.

    Raises ConfigError when it exists already: it may be someone's base model.
    """
    path = Path(config.train.proj_dir) / INIT
    if path.exists():
        raise ConfigError(f"{path} exists already; remove it yourself or choose another --proj_dir")
    model = make_model(config, origin)
    save_weights(path, model.state_dict(), stored_dtype(config))
    return path, model


def write_initial_weights(config: ResolvedConfig, origin: Origin, notes: list[str]) -> None:
    """Stage 1: writes rwkv-init.pth and says what to do next. Raises ConfigError."""
    for note in notes:
        print(f"  note        {note}")
    path, model = save_initial_weights(config, origin)
    m = config.model
    count = sum(p.numel() for p in model.parameters())
    dtype = str(stored_dtype(config)).removeprefix("torch.")
    print(
        f"wrote {path}: RWKV-{m.rwkv_version}, {m.n_layer} layers, width {m.n_embd}, "
        f"vocabulary {m.vocab_size}, {count / 1e6:.1f} M parameters, {dtype}"
    )
    print("train it with the same flags and --train_stage 3")


def stored_dtype(config: ResolvedConfig) -> torch.dtype:
    """Number format of the checkpoints of this run."""
    return torch.float32 if config.train.save_fp32 else DTYPES[config.hardware.precision]
