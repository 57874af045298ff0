"""Faults in the places for second copies of training states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rwkv_train.config.copy_places import PARTNER, CopyPlace, copy_places
from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError


def check_copies(config: RunConfig) -> None:
    """Raises ConfigError for places that are no second one, and rules that nothing ever meets."""
    safety = config.safety
    places = copy_places(safety.state_copies)
    if not places and safety.copies_wait_minutes != SafetyConfig.copies_wait_minutes:
        raise ConfigError(
            f"--copies_wait_minutes {safety.copies_wait_minutes:g} needs --state_copies, which is"
            " not given"
        )
    _check_partner(places, config)
    own = Path(config.train.proj_dir).resolve()
    seen: set[Path] = set()
    for place in places:
        folder = place.folder.resolve()
        if folder == own:
            raise ConfigError(
                f"--state_copies {place.folder} is --proj_dir itself; name a folder on another disk"
            )
        if folder in seen:
            raise ConfigError(f"--state_copies names {place.folder} twice; name it once")
        seen.add(folder)
        if place.folder.exists() and not place.folder.is_dir():
            raise ConfigError(f"--state_copies {place.folder} is a file; expected a folder")
        _check_multiples(place, config)


def _check_multiples(place: CopyPlace, config: RunConfig) -> None:
    """Raises ConfigError for a multiple at which no state is saved on purpose."""
    # An open epoch_steps is filled by `resolve`, which checks again.
    if place.keep_every is None or config.train.epoch_steps is None:
        return
    units = [n for n in (config.safety.save_every_steps, config.train.epoch_steps) if n]
    if all(place.keep_every % n for n in units):
        raise ConfigError(
            f"--state_copies {place.folder}: keep_every={place.keep_every} is no multiple of"
            f" --epoch_steps {config.train.epoch_steps} nor of --save_every_steps"
            f" {config.safety.save_every_steps}: nothing is saved there on purpose; use a multiple,"
            f" such as {units[0] * 10}"
        )


def _check_partner(places: Sequence[CopyPlace], config: RunConfig) -> None:
    """Raises ConfigError for two partners, and for states that are not whole without a file."""
    there = [place for place in places if place.on_partner]
    if len(there) > 1:
        raise ConfigError(
            f"--state_copies names {PARTNER}{there[0].folder} and {PARTNER}{there[1].folder}, but"
            " there is one partner machine; name one folder there"
        )
    if there and config.train.train_type != "all":
        raise ConfigError(
            f"--state_copies {PARTNER}{there[0].folder} with --train_type"
            f" {config.train.train_type}: a state is of no use there without its base model, which"
            " is not sent; name a folder that both machines see, without partner:"
        )
