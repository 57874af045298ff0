"""Flags that the programs around a loaded model share: the model, the sampling, the machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rwkv_train.command_line import path_argument
from rwkv_train.config.choices import BackendName
from rwkv_train.errors import ConfigError
from rwkv_train.inference.machine import DEVICE_NAMES, PRECISION_NAMES, WEIGHT_NAMES

if TYPE_CHECKING:
    from rwkv_train.inference.opening import LoadedModel
    from rwkv_train.inference.sampling import SamplingOptions

_SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0: always the likeliest token"),
    "top_p": (float, "likeliest tokens up to this share"),
    "top_k": (int, "at most so many tokens; 0: off"),
    "presence_penalty": (float, "for tokens used before"),
    "frequency_penalty": (float, "for each earlier use"),
    "penalty_decay": (float, "fading of earlier uses"),
}
_ORDERS = ("temperature", "top_p")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model, with what beside it."""
    add = parser.add_argument
    add("--load_model", required=True, type=path_argument, help="checkpoint, .pth or .safetensors")
    add("--load_states", type=path_argument, help="trained initial states for that checkpoint")
    add("--lora", type=path_argument, help="adapter for that checkpoint, ours or peft's folder")
    add(
        "--tokenizer",
        type=path_argument,
        help="world, bytes, a tokenizer.json or a vocabulary as .txt; else the run's own",
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser, defaults: Mapping[str, float | str | None]
) -> None:
    """Adds the flags of the sampling; defaults: of all of them, by name; None: said elsewhere."""
    for name, (kind, text) in _SAMPLING.items():
        parser.add_argument(f"--{name}", type=kind, default=defaults[name], help=text)
    parser.add_argument(
        "--sampling_order",
        choices=_ORDERS,
        default=defaults["order"],
        help="what acts first; top_p: the likeliest are chosen before the temperature acts, as "
        "in ChatRWKV",
    )


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where and in which numbers to compute."""
    parser.add_argument("--device", choices=DEVICE_NAMES, default="auto")
    parser.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        default="auto",
        help="auto: fp32 on a CPU, bf16 on a GPU, fp16 on one before Ampere",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHT_NAMES,
        default="float",
        help="int8: matrices rounded, faster on a CPU; says how much accuracy that costs",
    )
    parser.add_argument(
        "--wkv_backend",
        choices=get_args(BackendName),
        default="auto",
        help="implementation of the WKV operator",
    )


def sampling_of(a: argparse.Namespace) -> SamplingOptions:
    """Returns the sampling that was asked for; ConfigError for a number out of range."""
    from rwkv_train.inference.sampling import SamplingOptions

    return SamplingOptions(**{name: getattr(a, name) for name in _SAMPLING}, order=a.sampling_order)


def open_given(a: argparse.Namespace) -> LoadedModel:
    """Returns the model that was asked for, with all that the flags say."""
    from rwkv_train.inference.opening import open_model

    return open_model(
        a.load_model,
        device=a.device,
        precision=a.precision,
        tokenizer=a.tokenizer,
        states=a.load_states,
        lora=a.lora,
        wkv_backend=a.wkv_backend,
        weights=a.weights,
    )


def require_at_least(a: argparse.Namespace, **lowest: int) -> None:
    """Raises ConfigError for a number that is smaller than the smallest sensible one."""
    for name, least in lowest.items():
        if getattr(a, name) < least:
            raise ConfigError(f"--{name} {getattr(a, name)} must be at least {least}")


def require_state_place(flag: str, path: str, is_state: Callable[[Path], bool]) -> None:
    """Raises ConfigError unless a state can be written to `path`, without loss of another file."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ConfigError(f"{flag} {path}: {target.parent} is no folder; create it first")
    if target.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file's name")
    if target.exists() and not is_state(target):
        raise ConfigError(
            f"{flag} {path} exists and is no saved state, so it is not written over; choose "
            "another name"
        )
