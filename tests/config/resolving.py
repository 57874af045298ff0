"""Shared by the tests of resolve: facts with known numbers, and short ways to resolve a line."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.discovered import (
    DataDiscovered,
    Discovered,
    MachineDiscovered,
    StartDiscovered,
    StateDiscovered,
)
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError

# RWKV-LM's demo: 1498226207 tokens are 2926223 slots of 512, the prime below is 2926181.
MINIPILE = Discovered(
    DataDiscovered(token_count=1498226207, best_prime=2926181, vocab_size=65536, tokenizer="world")
)
EIGHT_GPUS = dataclasses.replace(
    MINIPILE, machine=MachineDiscovered(gpu_count=8, gpu_has_bf16=True)
)
# The demo file: 391 slots of 512.
SMALL = Discovered(
    DataDiscovered(token_count=200499, best_prime=389, vocab_size=65536, tokenizer="world")
)
SHAPE = ModelConfig(
    rwkv_version="6", n_layer=24, n_embd=2048, dim_att=2048, dim_ffn=7168, vocab_size=65536,
    head_size=64, rank_mix=32, rank_decay=64,
)  # fmt: skip


def config_of(line):
    return load_config(translate(shlex.split("--data_file data/x --ctx_len 512 " + line)).argv)


def resolved(line, discovered=MINIPILE):
    return resolve(config_of(line), discovered)


def values(line, *names, discovered=MINIPILE):
    """Returns resolved values as config.yaml holds them."""
    config = resolved(line, discovered)[0].as_given()
    found = [getattr(getattr(config, fields()[name].section), name) for name in names]
    return found[0] if len(names) == 1 else tuple(found)


def fault(line, discovered=MINIPILE):
    with pytest.raises(ConfigError) as caught:
        resolved(line, discovered)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def but(discovered, **facts):
    """Returns `discovered` with these facts changed, whichever part of it they belong to."""
    parts = {part: getattr(discovered, part) for part in ("data", "start", "machine")}
    state = parts["start"].state
    for name, value in facts.items():
        if state is not None and hasattr(state, name):
            state = dataclasses.replace(state, **{name: value})
            parts["start"] = dataclasses.replace(parts["start"], state=state)
            continue
        (part,) = [part for part, found in parts.items() if hasattr(found, name)]
        parts[part] = dataclasses.replace(parts[part], **{name: value})
    return Discovered(**parts)


def found(kind, epoch=None, path="out/rwkv-init.pth", base=MINIPILE, **more):
    state = {"weights": None, "state": StateDiscovered()}[kind]
    start = StartDiscovered(path=path, epoch=epoch, model=SHAPE, state=state)
    return but(dataclasses.replace(base, start=start), **more)
