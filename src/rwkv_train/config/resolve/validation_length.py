"""Checks of validation that need what was found: its length, and what a resumed run held out."""

from __future__ import annotations

from rwkv_train.config.discovered import Discovered, StartDiscovered
from rwkv_train.config.resolved import ResolvedData, ResolvedModel
from rwkv_train.errors import ConfigError


def check_held_out(
    data: ResolvedData, model: ResolvedModel, discovered: Discovered, lines: list[str]
) -> None:
    """Raises ConfigError for a validation that this run cannot have; says what is held out.

    A resumed run would train on what was held out before, or the model cannot read as far.
    """
    _check_same_split(data, discovered.start)
    length = data.val_ctx_len
    if length > data.ctx_len and model.head_qk:
        raise ConfigError(
            f"--val_ctx_len {length} is beyond --ctx_len {data.ctx_len}: a model with"
            " head_qk has no state that could be carried so far; use at most --ctx_len"
        )
    if data.val_split is not None and discovered.data is not None:
        lines.append(
            f"val_split {data.val_split:g}: {discovered.data.held_out_tokens} tokens are held out,"
            f" which leaves {discovered.data.token_count} to train on"
        )


def _check_same_split(data: ResolvedData, start: StartDiscovered) -> None:
    """Raises ConfigError when a resumed run has another split than before.

    The held-out slots follow from three lengths; with others, old ones would be trained on.
    """
    # Bare weights do not tell what they were trained on.
    if start.state is None:
        return
    before = start.state.config
    split = before.get("val_split")
    if split is None and data.val_split is None:
        return
    names = ("val_split", "ctx_len", "val_ctx_len")
    old = {name: before.get(name) for name in names}
    now = {name: getattr(data, name) for name in names}
    for name in names:
        if old[name] != now[name]:
            if split is None:
                raise ConfigError(
                    f"--val_split {data.val_split:g}: the run of {start.path} has"
                    " trained on all of its data; use --val_data_file, or start in another"
                    " --proj_dir"
                )
            raise ConfigError(
                f"--{name} {now[name]} contradicts {start.path}, whose run had {name}"
                f" {old[name]}: what was held out there would be trained on here, or the other way"
                f" round; give --{name} {old[name]}, or start in another --proj_dir"
            )
