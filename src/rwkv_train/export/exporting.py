"""One export: refuse, write beside, read back, compare, and only then give it its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rwkv_train.errors import CheckpointError, ConfigError, short_reason
from rwkv_train.export.model_card import model_card
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import ExportOptions, ExportTarget
from rwkv_train.export.verification import LogitsReport, compare_logits, require_same_numbers
from rwkv_train.files import partial_path, sync_folder

Say = Callable[[str], None]


def export_model(
    model: SourceModel,
    target: ExportTarget,
    options: ExportOptions,
    out: Path,
    *,
    check: bool = True,
    card: bool = True,
    say: Say = print,
) -> LogitsReport | None:
    """Writes `model` for `target` as `out`, which has that name only once it was found right.

    check: compare logits as well as numbers; False: None is returned, and said.
    card: write a model card too, as `card_path` names it.
    Raises ConfigError for what the target cannot express, CheckpointError when the written model
    is not the model or the disk does not take it; nothing is left behind then.
    """
    require_expressible(model, target, options)
    require_free(out, target, card=card)
    folder = partial_path(out)
    try:
        folder.mkdir()
        # Under its own name, by which programs tell the format of a file.
        written = folder / out.name
        remarks = target.write(model, options, written)
        report = _verify(model, target, options, written, check=check, say=say)
        remarks += _write_beside(model, target, written)
        if card:
            text = model_card(out.name, model, target, options, report)
            card_path(written).write_text(text, encoding="utf-8")
        _publish(folder, out)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {out}: {short_reason(error)}; make room or name another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for remark in remarks:
        say(f"note: {remark}")
    say(f"wrote {out}: {target.reader}, {options.precision}, {_size(out)}")
    return report


def card_path(out: Path) -> Path:
    """Returns the path of an export's model card: README.md in a folder, else next to the file."""
    return out / "README.md" if out.is_dir() else out.with_name(f"{out.name}.README.md")


def require_expressible(model: SourceModel, target: ExportTarget, options: ExportOptions) -> None:
    """Raises ConfigError when the target has no form of this model, with the reason."""
    if options.precision not in target.precisions:
        raise ConfigError(
            f"--to {target.name} has no --precision {options.precision}; choose from "
            f"{', '.join(target.precisions)}"
        )
    reason = target.refuses(model, options)
    if reason is not None:
        raise ConfigError(f"{model.path} cannot be exported --to {target.name}: {reason}")


def require_free(out: Path, target: ExportTarget, *, card: bool = True) -> None:
    """Raises CheckpointError when `out` cannot be made, ConfigError when its name is wrong."""
    if target.suffix and out.suffix != target.suffix:
        raise ConfigError(
            f"--output {out}: --to {target.name} writes a file, whose name must end in "
            f"{target.suffix}"
        )
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists already; remove it yourself or choose another name")
    if card and target.suffix and card_path(out).exists():
        raise CheckpointError(
            f"{card_path(out)} exists already, where the model card of {out.name} would be; remove "
            "it yourself or choose another name"
        )
    if not out.parent.is_dir():
        raise CheckpointError(f"{out.parent} is no folder; create it or choose another name")


def _write_beside(model: SourceModel, target: ExportTarget, written: Path) -> list[str]:
    """Writes what the target has no place for; returns what is to be said of it."""
    if not model.states or target.holds_states:
        return []
    return [
        f"{file.name} beside it: {purpose}; {target.reader} has no place for them"
        for file, purpose in target.write_states(model.states, written)
    ]


def _verify(
    model: SourceModel,
    target: ExportTarget,
    options: ExportOptions,
    written: Path,
    *,
    check: bool,
    say: Say,
) -> LogitsReport | None:
    found = target.read_back(written)
    compared = require_same_numbers(written, target.expected(model, options), found)
    say(f"read back: {compared} of {len(found)} tensors compared, the same bits")
    if not check:
        say("logits were not compared (--check 0)")
        return None
    say("logits, the largest difference from ours in fp64 by the largest logit:")
    report = compare_logits(target, written, model, found, options)
    for line in report.lines():
        say(line)
    fault = report.fault()
    if fault is not None:
        raise CheckpointError(f"nothing was written: {fault}")
    return report


def _publish(folder: Path, out: Path) -> None:
    """Moves everything in `folder` next to it, the files of `out` flushed to the disk before."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    # The model last: where it is, what lies beside it is too.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
        place = out.parent / path.name
        if place.exists():
            raise CheckpointError(
                f"{place} exists already; remove it yourself or choose another name"
            )
        path.rename(place)
    sync_folder(out.parent)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
