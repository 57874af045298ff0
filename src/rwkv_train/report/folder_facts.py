"""Reads what a run's folder says of it besides its curves: settings, starts, plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rwkv_train.config.load import saved_values
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.sections import sections_of
from rwkv_train.report.run_records import PLAN_FILE, read_starts

CONFIG_FILE = "config.yaml"
# They differ between any two runs and say nothing about either.
_PLACES = frozenset({"proj_dir", "enable_progress_bar", "plot"})


@dataclass(frozen=True)
class RunFacts:
    """The files of a run that do not grow with its steps.

    settings: leaf name -> value, {} where config.yaml cannot be read; fault: why; plan: of
    plan.json, {} without one.
    """

    folder: Path
    settings: Mapping[str, Any]
    fault: str
    starts: list[dict[str, Any]]
    plan: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name: where it lies is nobody's business."""
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        """Architecture and shape, as far as they are known."""
        found = self.settings
        if not found.get("rwkv_version"):
            return "RWKV"
        return (
            f"RWKV-{found['rwkv_version']}, {found.get('n_layer')} layers, width "
            f"{found.get('n_embd')}, context {found.get('ctx_len')}, vocabulary "
            f"{found.get('vocab_size')}"
        )

    @property
    def machine(self) -> Mapping[str, Any]:
        """The machine of the last start; {} where it is not told."""
        machines = [r["machine"] for r in self.starts if isinstance(r.get("machine"), dict)]
        return machines[-1] if machines else {}


def read_facts(folder: Path) -> RunFacts:
    """Returns what a folder says; what is missing or damaged is left out."""
    path = folder / CONFIG_FILE
    settings: dict[str, Any] = {}
    fault = ""
    if not path.is_file():
        fault = f"{CONFIG_FILE} is missing"
    else:
        try:
            settings = dict(saved_values(path.read_text(encoding="utf-8")))
        # Whatever somebody has written there: the report of a run needs not all of its files.
        except Exception as error:
            fault = f"{CONFIG_FILE} cannot be read ({type(error).__name__})"
    return RunFacts(folder, settings, fault, read_starts(folder), _plan(folder))


def _plan(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def section_of_settings() -> dict[str, str]:
    """Returns leaf name -> section, in the order of the schema."""
    sections = zip(fields(RunConfig), sections_of(RunConfig()))
    return {entry.name: section.name for section, values in sections for entry in fields(values)}


def default_settings() -> dict[str, Any]:
    """Returns leaf name -> default, None where it is worked out."""
    return {
        entry.name: getattr(section, entry.name)
        for section in sections_of(RunConfig())
        for entry in fields(section)
    }


def differing_settings(facts: list[RunFacts]) -> list[tuple[str, list[Any]]]:
    """Returns (name, value of each run) of what not all runs have alike; None: not told."""
    order = [*section_of_settings(), *(name for f in facts for name in f.settings)]
    rows = [(name, [f.settings.get(name) for f in facts]) for name in dict.fromkeys(order)]
    return [
        (name, values)
        for name, values in rows
        if name not in _PLACES and any(value != values[0] for value in values)
    ]


def flat_machine(machine: Mapping[str, Any]) -> dict[str, str]:
    """Returns name -> value of a machine record, packages and cards one by one."""
    found: dict[str, str] = {}
    for name, value in machine.items():
        if name == "packages" and isinstance(value, dict):
            found |= {str(package): str(version) for package, version in value.items()}
        elif name == "cards" and isinstance(value, list):
            found |= {f"card {i}": _card(card) for i, card in enumerate(value)}
            found |= {} if value else {"cards": "none"}
        elif name == "memory" and isinstance(value, int):
            found["memory"] = f"{value / 2**30:.1f} GiB"
        else:
            found[str(name)] = "none" if value is None else str(value)
    return found


def _card(card: Any) -> str:
    if not isinstance(card, dict):
        return str(card)
    memory = card.get("memory")
    size = f", {memory / 2**30:.0f} GiB" if isinstance(memory, int) else ""
    return f"{card.get('name')}{size}, capability {card.get('capability')}"
