"""Shared by the tests of resolve: facts with known numbers, and short ways to resolve a line."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.discovered import Discovered
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError

# RWKV-LM's demo: 1498226207 tokens are 2926223 slots of 512, the prime below is 2926181.
MINIPILE = Discovered(
    token_count=1498226207, best_prime=2926181, data_vocab_size=65536, data_tokenizer="world"
)
EIGHT_GPUS = dataclasses.replace(MINIPILE, gpu_count=8, gpu_has_bf16=True)
# The demo file: 391 slots of 512.
SMALL = Discovered(
    token_count=200499, best_prime=389, data_vocab_size=65536, data_tokenizer="world"
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
    config, _ = resolved(line, discovered)
    found = [getattr(getattr(config, fields()[name].section), name) for name in names]
    return found[0] if len(names) == 1 else tuple(found)


def fault(line, discovered=MINIPILE):
    with pytest.raises(ConfigError) as caught:
        resolved(line, discovered)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def found(kind, epoch=-1, path="out/rwkv-init.pth", base=MINIPILE, **more):
    return dataclasses.replace(
        base, start=kind, start_epoch=epoch, start_path=path, start_model=SHAPE, **more
    )
