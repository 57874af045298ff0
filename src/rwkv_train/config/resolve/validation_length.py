"""What a validation reads: its length, and what is held out for it."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import Discovered
from rwkv_train.config.schema import DataConfig, RunConfig
from rwkv_train.errors import ConfigError


def resolve_validation(config: RunConfig, discovered: Discovered, lines: list[str]) -> DataConfig:
    """The data section with val_ctx_len, where there is a validation.

    Raises ConfigError when going on would train on what was held out before, and for a validation
    longer than the model can do.
    """
    data = config.data
    if discovered.start == "state":
        _check_same_split(data, discovered)
    if data.val_data_file is None and data.val_split is None:
        return data
    if data.val_ctx_len is None:
        data = dataclasses.replace(data, val_ctx_len=data.ctx_len)
    if data.val_ctx_len > data.ctx_len and config.model.head_qk:
        raise ConfigError(
            f"--val_ctx_len {data.val_ctx_len} is beyond --ctx_len {data.ctx_len}: a model with"
            " head_qk has no state that could be carried so far; use at most --ctx_len"
        )
    if data.val_split is not None:
        lines.append(
            f"val_split {data.val_split:g}: {discovered.held_out_tokens} tokens are held out, which"
            f" leaves {discovered.token_count} to train on"
        )
    return data


def _check_same_split(data: DataConfig, discovered: Discovered) -> None:
    """The held-out slots follow from three lengths; with others, old ones would be trained on."""
    before = discovered.state_config
    split = before.get("val_split")
    if split is None and data.val_split is None:
        return
    names = ("val_split", "ctx_len", "val_ctx_len")
    old = {name: before.get(name) for name in names}
    now = {name: getattr(data, name) for name in names}
    now["val_ctx_len"] = now["val_ctx_len"] or data.ctx_len
    for name in names:
        if old[name] != now[name]:
            if split is None:
                raise ConfigError(
                    f"--val_split {data.val_split:g}: the run of {discovered.start_path} has"
                    " trained on all of its data; use --val_data_file, or start in another"
                    " --proj_dir"
                )
            raise ConfigError(
                f"--{name} {now[name]} contradicts {discovered.start_path}, whose run had {name}"
                f" {old[name]}: what was held out there would be trained on here, or the other way"
                f" round; give --{name} {old[name]}, or start in another --proj_dir"
            )
