"""Describes this machine and the versions of what runs on it, for records and bug reports.

Nothing in it tells who the user is: no host name, no path, no address.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from rwkv_train.processors import processor_name, usable_processors
from rwkv_train.version import code_version

# What decides whether a run starts and how fast it is.
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pytorch-lightning",
    "deepspeed",
    "setuptools",
    "ninja",
    "pyrwkv-tokenizer",
    "tokenizers",
)


def machine_record() -> dict[str, Any]:
    """Returns code, python, system, processor, processors, memory (bytes), packages and cards.

    packages: name -> version of those that are installed; cards: name, memory (bytes) and
    capability of every card that torch can use; cuda: which torch was built for, None for CPUs.
    """
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "processors": usable_processors(),
        "memory": _physical_memory(),
        "packages": dict(_installed()),
        "cuda": torch.version.cuda,
        "cards": [_card(index) for index in range(_usable_cards())],
    }


def _installed() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _physical_memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _usable_cards() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _card(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }
