"""Facts of the run that made a model, from the files next to its checkpoint, for its card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkv_train.checkpoint.names import BEST, FINAL, INIT, epoch_of
from rwkv_train.checkpoint.provenance import read_about
from rwkv_train.config.load import read_config
from rwkv_train.config.schema import RunConfig


def run_facts(checkpoint: Path) -> list[tuple[str, str]]:
    """Returns (name, value) of what is known about the training, in words; [] where nothing is.

    checkpoint: the file that was loaded.  Folders of a path are left out: a card is published.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    saved = folder / "config.yaml"
    if not saved.is_file() or not _is_of_run(checkpoint):
        return []
    config = read_config(saved)
    facts = _data(config, saved)
    facts += _progress(checkpoint, list(_records(folder / "metrics.jsonl")))
    facts += _settings(config)
    starts = list(_records(folder / "starts.jsonl"))
    if starts:
        begun = starts[0].get("from")
        facts.append(("began from", "fresh weights" if begun == INIT else f"`{begun}`"))
        facts.append(("trained by", f"rwkv-train {starts[-1].get('code_version', '')}".strip()))
    return facts


def _is_of_run(checkpoint: Path) -> bool:
    """Tells whether a file has a name that a run gives; others may lie there by accident."""
    name = checkpoint.name.replace(".merged.pth", ".pth")
    return name in (FINAL, BEST) or epoch_of(name) is not None


def _data(config: RunConfig, saved: Path) -> list[tuple[str, str]]:
    data = config.data
    if not data.data_file:
        return []
    words = f"`{Path(data.data_file).name}`"
    # As it is found now, from where the run was started or from here.
    places = (Path(data.data_file), saved.parent.parent / data.data_file)
    manifests = [place.with_name(place.name + ".manifest.json") for place in places]
    found = next((_json(path) for path in manifests if path.is_file()), {})
    if found.get("tokens"):
        words += f", {found['tokens']:,} tokens"
    if found.get("documents"):
        words += f" in {found['documents']:,} documents"
    return [("data", words)]


def _progress(checkpoint: Path, records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns tokens, steps and losses up to the checkpoint."""
    about = read_about(checkpoint) or {}
    end = about.get("tokens")
    steps = [record for record in records if "loss" in record and "tokens" in record]
    if isinstance(end, int):
        steps = [record for record in steps if record["tokens"] <= end]
    elif checkpoint.name.replace(".merged.pth", ".pth") != FINAL:
        # Which of the records belong to it is not known.
        return []
    if not steps:
        return []
    last = steps[-1]
    facts = [
        ("tokens read", f"{last['tokens']:,} in {last['step'] + 1:,} steps"),
        ("training loss", f"{last['loss']:.4f} nats per token in the last step"),
    ]
    validated = [r for r in records if "val_loss" in r and r.get("step", 0) <= last["step"]]
    if validated:
        found = validated[-1]
        words = f"{found['val_loss']:.4f} nats per token"
        if found.get("val_bits_per_byte"):
            words += f", {found['val_bits_per_byte']:.4f} bits per byte"
        facts.append(("validation loss", words))
    return facts


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    optim, train = config.optim, config.train
    facts = [
        ("sample length", f"{config.data.ctx_len:,} tokens"),
        ("learning rate", f"{optim.lr_init:g} to {optim.lr_final:g}, {optim.optimizer}"),
        ("weight decay", f"{optim.weight_decay:g}"),
        ("precision of training", f"{config.hardware.precision}"),
    ]
    if train.train_type != "all":
        facts.append(("what was trained", f"{train.train_type}"))
    if train.load_model:
        facts.append(("base model", f"`{Path(train.load_model).name}`"))
    return facts


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines; a last line that was cut off is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
