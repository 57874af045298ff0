"""The sections of a run that are tables and texts: mishaps, samples, settings, starts, plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rwkv_train.report.folder_facts import (
    RunFacts,
    default_settings,
    flat_machine,
    section_of_settings,
)
from rwkv_train.report.page_blocks import (
    PagePart,
    known_number,
    page_table,
    section,
    shown_bytes,
    shown_count,
    shown_value,
)
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.step_bins import thinned

_MOST_ROWS = 100
MOST_SAMPLES = 24
MOST_TEXTS = 8
# A page has to stay small: characters of a text, and of a cell; bytes of all texts together.
MOST_CHARACTERS = 3000
MOST_IN_CELL = 300
TEXT_BYTES = 200_000


def mishap_section(history: RunHistory) -> PagePart:
    """Returns skipped steps with their samples and reasons, and returns to earlier states."""
    skipped, empty = history.events["skipped"], history.events["empty"]
    back = history.events["rollback"]
    blocks = []
    if skipped.count:
        rows = [
            [
                r["step"] + 1,
                shortened(r["skipped"], MOST_IN_CELL),
                _range(r.get("samples")),
                shortened(shown_value(r.get("suspects") or []), MOST_IN_CELL) or "the whole batch",
            ]
            for r in skipped.spread(_MOST_ROWS)
        ]
        columns = ["step", "reason", "samples", "suspects"]
        blocks.append(
            page_table("Skipped steps", columns, rows, note=_left_out(skipped.count, rows))
        )
    if back.count:
        rows = [
            [r["step"] + 1, str(r["rollback"]), _range(r.get("left_out"))]
            for r in back.spread(_MOST_ROWS)
        ]
        columns = ["after step", "back to", "samples left out"]
        blocks.append(page_table("Returns to an earlier state", columns, rows))
    words = [] if skipped.count or back.count else ["No step was skipped as bad."]
    if empty.count:
        words.append(
            f"{empty.count:,} steps had nothing to learn: the loss mask counts no token of theirs."
        )
    return section("mishaps", "Bad steps", blocks, *words)


def _range(ends: Any) -> str:
    if isinstance(ends, list) and len(ends) == 2:
        return f"{shown_value(ends[0])} to {shown_value(ends[1])}"
    return shown_value(ends)


def _left_out(count: int, rows: Sequence[Any]) -> str:
    if count <= len(rows):
        return ""
    return f"{len(rows)} of {count:,} are listed, evenly spread; metrics.jsonl has all."


def sample_section(history: RunHistory) -> PagePart | None:
    """Returns texts that the model has written, the newest first; None without any."""
    kept, left = history.events["samples"], TEXT_BYTES
    blocks: list[PagePart] = []
    for record in reversed(kept.spread(MOST_SAMPLES)):
        texts = record["samples"] if isinstance(record["samples"], list) else []
        items = [
            {"prompt": shortened(item.get("prompt")), "text": shortened(item.get("text"))}
            for item in texts[:MOST_TEXTS]
            if isinstance(item, dict)
        ]
        # As a page holds them: a sign of Chinese is six.
        left -= len(json.dumps(items))
        if left < 0 and blocks:
            break
        title = f"After step {record['step'] + 1}"
        blocks.append({"kind": "texts", "title": title, "items": items, "closed": bool(blocks)})
    words = ""
    if len(blocks) < kept.count:
        words = f"{len(blocks)} of {kept.count:,} samples are shown; metrics.jsonl has all."
    return section("samples", "Text samples", blocks, words) if blocks else None


def shortened(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Returns the beginning of a text that may be long."""
    words = str(text or "")
    return words if len(words) <= most else words[:most] + " …"


def settings_section(facts: RunFacts) -> PagePart:
    """Returns the configuration, with what is not a default marked."""
    if not facts.settings:
        return section("settings", "Configuration", [], f"Not told: {facts.fault}.")
    sections, defaults = section_of_settings(), default_settings()
    rows = []
    for name, value in facts.settings.items():
        default = defaults.get(name)
        given = "" if name in defaults and value == default else "•"
        worked_out = "worked out" if default is None else shown_value(default)
        shown = shortened(shown_value(value), MOST_IN_CELL)
        rows.append([name, shown, worked_out, given, sections.get(name, "")])
    columns = ["setting", "value", "default", "differs", "section"]
    chosen = [row[:3] for row in rows if row[3] and row[2] != "worked out"]
    return section(
        "settings",
        "Configuration",
        [
            page_table("Settings that differ from their defaults", columns[:3], chosen),
            page_table("All settings", columns, rows, closed=True),
        ],
    )


def start_section(facts: RunFacts) -> PagePart:
    """Returns every start, what it had changed, and the machine that it ran on."""
    starts = facts.starts
    shown = [starts[i] for i in thinned(len(starts), _MOST_ROWS)]
    rows = [
        [
            str(r.get("time", "–")).replace("T", " ", 1).replace("+00:00", " UTC"),
            shown_value(r.get("step")),
            str(r.get("from") or "new weights"),
            str(r.get("code_version", "–")),
            shortened("; ".join(map(str, r.get("changes") or [])), MOST_CHARACTERS // 2)
            or "nothing",
        ]
        for r in shown
    ]
    columns = ["start", "after step", "from", "code", "changed since the start before"]
    blocks = [page_table("Starts", columns, rows, note=_left_out(len(starts), rows))]
    machines = [flat_machine(r["machine"]) for r in starts if isinstance(r.get("machine"), dict)]
    if machines:
        names = dict.fromkeys(name for machine in machines for name in machine)
        rows = [[name, machines[-1].get(name, "–"), _earlier(name, machines)] for name in names]
        columns = ["what", "last start", "earlier starts, if other"]
        blocks.append(page_table("Environment", columns, rows))
    words = "" if starts else "Not told: starts.jsonl is missing."
    return section("starts", "Starts and environment", blocks if starts else [], words)


def _earlier(name: str, machines: Sequence[Mapping[str, str]]) -> str:
    now = machines[-1].get(name)
    return ", ".join(
        dict.fromkeys(m.get(name, "none") for m in machines[:-1] if m.get(name) != now)
    )


def plan_table(plan: Mapping[str, Any], history: RunHistory) -> PagePart:
    """Returns planned against measured: memory by component, arithmetic, parameters."""
    columns = ["what", "planned", "measured"]
    title = "Plan against measurement"
    if not plan:
        return page_table(
            title, columns, [], note="This run has no plan.json, so that nothing is compared."
        )
    memory = plan.get("memory")
    rows = [
        [f"memory: {str(name).replace('_', ' ')}", shown_bytes(count), ""]
        for name, value in (memory if isinstance(memory, dict) else {}).items()
        if (count := known_number(value))
    ]
    total, limit, parameters, work = (
        known_number(plan.get(name)) for name in ("total", "limit", "parameters", "flops_per_token")
    )
    peak, speed = _peak(history), _speed(history)
    if total:
        share = "–" if peak is None else f"{shown_bytes(peak)} ({peak / total:.0%})"
        rows.append(["memory of a process, in all", shown_bytes(total), share])
    if limit:
        rows.append(["memory there is", shown_bytes(limit), ""])
    if parameters:
        rows.append(["parameters", shown_count(parameters), ""])
    if work:
        measured = "–" if speed is None else f"{shown_count(work * speed)}FLOP a second"
        rows.append(["arithmetic of a token", f"{shown_count(work)}FLOP", measured])
    return page_table(title, columns, rows)


def _peak(history: RunHistory) -> float | None:
    if not history.bins.knows("memory"):
        return None
    highs = history.bins.highs("memory")
    return float(max(v for v in highs.tolist() if v == v))


def _speed(history: RunHistory) -> float | None:
    """Returns tokens per second of training, over all steps."""
    count = history.bins.total("tokens_per_second")
    return count / history.bins.rows if history.bins.rows else None
